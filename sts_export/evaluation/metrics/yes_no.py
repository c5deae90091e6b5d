"""Yes or no, as POPE and MME read it out of an answer."""

from __future__ import annotations

from typing import Literal


def pope_says_no(answer: str) -> bool:
    """The first sentence has the word No, no or not; commas aside.  Everything else is a yes (LLaVA's ``eval_pope.py``)."""
    words = answer.strip().split(".")[0].replace(",", "").split(" ")
    return any(word in words for word in ("No", "not", "no"))


def mme_says(answer: str) -> Literal["yes", "no", "other"]:
    """What the first four characters hold, in lower case (MME's ``calculation.py``)."""
    said = answer.strip().lower()
    if said == "yes" or "yes" in said[:4]:
        return "yes"
    return "no" if said == "no" or "no" in said[:4] else "other"
