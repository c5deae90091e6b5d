"""Conversations in LLaVA's JSON format.

    [{"id": "…", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat …?"}, {"from": "gpt", …}]}, …]

``image`` may be a list, one picture for each ``<image>``.  Pictures lie in ``images/`` beside the JSON file, or beside it.
Entries without a picture teach nothing here and are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sts_export.errors import RequestError

IMAGE = "<image>"
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True)
class Turn:
    """role: ``user``, ``assistant`` or ``system``; parts: texts, and ``IMAGE`` where a picture is."""

    role: str
    parts: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(part for part in self.parts if part != IMAGE)


@dataclass(frozen=True)
class Conversation:
    """images: files in the order of their places; turns: the last one is the assistant's."""

    images: tuple[Path, ...]
    turns: tuple[Turn, ...]

    @property
    def answers(self) -> tuple[int, ...]:
        """Numbers of the assistant's turns after the last picture."""
        shown = max(number for number, turn in enumerate(self.turns) if IMAGE in turn.parts)
        return tuple(number for number, turn in enumerate(self.turns) if turn.role == "assistant" and number > shown)

    @property
    def before(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Everything up to the last picture: conversations that share it and the pictures share a prefix."""
        shown = max(number for number, turn in enumerate(self.turns) if IMAGE in turn.parts)
        parts = self.turns[shown].parts
        last = len(parts) - parts[::-1].index(IMAGE)
        return (*((turn.role, turn.parts) for turn in self.turns[:shown]), (self.turns[shown].role, parts[:last]))


@dataclass(frozen=True)
class Data:
    """What a file holds; without_image: entries that were left out; digest: SHA-256 of the file."""

    conversations: tuple[Conversation, ...]
    without_image: int
    digest: str


def read_data(place: Path, limit: int | None = None) -> Data:
    """Conversations of a folder with one JSON file, or of a JSON file.

    Args:
        limit: of the entries, the first so many.

    Raises:
        RequestError: no such file, no list, or a malformed entry or missing picture: file, number of the entry and what is
            wrong.
    """
    file = _json_file(place)
    try:
        content = file.read_bytes()
        entries = json.loads(content)
    except OSError as error:
        raise RequestError(f"{file} cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:
        raise RequestError(f"{file} is no JSON ({error}); give conversations in LLaVA's format") from None
    if not isinstance(entries, list):
        raise RequestError(f"{file} holds no list; give conversations in LLaVA's format: a list of entries")
    found: list[Conversation] = []
    for number, entry in enumerate(entries[:limit], 1):
        try:
            if (conversation := _conversation(entry, file.parent)) is not None:
                found.append(conversation)
        except ValueError as error:
            raise RequestError(f"{file}, entry {number}: {error}; mend or remove it") from None
    if not found:
        raise RequestError(f"{file} has no conversation about a picture; give one")
    return Data(tuple(found), len(entries[:limit]) - len(found), hashlib.sha256(content).hexdigest())


def _json_file(place: Path) -> Path:
    if not place.is_dir():
        return place
    files = sorted(place.glob("*.json"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise RequestError(f"{place} must hold one .json file of conversations, it has {names}; give the file itself")
    return files[0]


def _conversation(entry: Any, folder: Path) -> Conversation | None:
    """Raises ValueError: what is wrong with the entry."""
    if not isinstance(entry, dict):
        raise ValueError("not an object")
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise ValueError('no list "conversations"')
    read = [_turn(turn, number) for number, turn in enumerate(turns, 1)]
    names = entry.get("image")
    names = [] if names is None else names if isinstance(names, list) else [names]
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError('"image" is neither a file name nor a list of them')
    places = sum(turn.parts.count(IMAGE) for turn in read)
    if places != len(names):
        raise ValueError(f"{places} {IMAGE} in the text for {len(names)} pictures")
    roles = [turn.role for turn in read if turn.role != "system"]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError("turns do not alternate between human and gpt, ending with gpt")
    if not names:
        return None
    if any(IMAGE in turn.parts for turn in read if turn.role == "assistant"):
        raise ValueError(f"{IMAGE} in an answer")
    return Conversation(tuple(_picture(name, folder) for name in names), tuple(read))


def _turn(turn: Any, number: int) -> Turn:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise ValueError(f'turn {number} has no text "value"')
    role = ROLES.get(str(turn.get("from")))
    if role is None:
        raise ValueError(f"turn {number} is from {turn.get('from')!r} instead of {', '.join(ROLES)}")
    pieces = _separated([piece.strip() for piece in turn["value"].split(IMAGE)])
    return Turn(role, tuple(piece for piece in pieces if piece))


def _separated(pieces: list[str]) -> Iterable[str]:
    for number, piece in enumerate(pieces):
        if number:
            yield IMAGE
        yield piece


def _picture(name: str, folder: Path) -> Path:
    for file in (folder / "images" / name, folder / name):
        if file.is_file():
            return file
    raise ValueError(f"no picture {name} in {folder / 'images'} or {folder}")
