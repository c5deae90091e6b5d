"""Consensus accuracy: an answer counts fully if three of the other annotators gave it."""

from __future__ import annotations

from collections.abc import Sequence

from sts_export.evaluation.metrics.answers import evalai, official, one_line


def vqa_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """Of VQA-v2 and VizWiz: the official scorer, on an answer as LLaVA submits it.

    The scorer normalizes both sides only where annotators differ.
    """
    said, true = one_line(evalai(answer)), [one_line(one) for one in annotators]
    if len(set(true)) > 1:
        said, true = official(said), [official(one) for one in true]
    return _leave_one_out(said, true)


def textvqa_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """Of TextVQA: both sides through the EvalAI processor."""
    return _leave_one_out(evalai(answer), [evalai(one) for one in annotators])


def _leave_one_out(said: str, true: Sequence[str]) -> float:
    """Mean over annotators of min(1, matches among the others / 3)."""
    same = [said == one for one in true]
    matches = sum(same)
    return sum(min(1.0, (matches - own) / 3) for own in same) / len(same)
