"""Contenders take turns; one that fails is left out with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.gpu.progress import Clock
from scripts.gpu.turns import Contender, Outcome, Task, take_turns

TASK = Task("picture.png", "What?", 2, "cpu", "float32")


@pytest.fixture
def order(tmp_path: Path) -> Path:
    file = tmp_path / "order"
    file.touch()
    return file


def compete(
    order: Path, *kinds: str, together: bool = True, limit_s: float = 60, memory: Callable[[], int | None] = lambda: None
) -> list[Outcome]:
    contenders = [
        Contender(name, "tests.scripts_gpu.openers:opened", {"kind": kind, "name": name, "order": str(order)})
        for name, kind in zip("ABC", kinds, strict=False)
    ]
    return take_turns(contenders, TASK, repeats=3, together=together, used_memory=memory, clock=Clock(limit_s))


def test_they_take_turns(order: Path) -> None:
    outcomes = compete(order, "counting", "counting")
    assert order.read_text()[-6:] == "ABABAB"
    assert [(outcome.name, outcome.error) for outcome in outcomes] == [("A", None), ("B", None)]
    assert outcomes[0].details == {"warm_up_runs": 2}
    assert outcomes[0].values == {"runs": [3, 4, 5]}  # without the warm-up
    assert outcomes[0].memory is None and outcomes[0].peak_memory is None


def test_one_after_the_other(order: Path) -> None:
    compete(order, "counting", "counting", together=False)
    assert order.read_text() == "AAAAABBBBB"


def test_one_that_fails_leaves_the_others(order: Path) -> None:
    failing, dying, counting = compete(order, "failing", "dying", "counting")
    assert failing.error == "ValueError: no more memory" and failing.values == {"runs": [3]}
    assert dying.error == "its process died with exit code 7" and dying.values == {}
    assert counting.error is None and counting.values == {"runs": [3, 4, 5]}


def test_time_runs_out(order: Path) -> None:
    (sleeping,) = compete(order, "sleeping", limit_s=1)
    assert sleeping.error == "out of time"


def test_memory_is_each_ones_own(order: Path) -> None:
    """10 bytes in use at first, 30 once A is warm, 70 once B is; a peak of 50 and 90 while they load."""

    def used() -> int:
        warm = order.read_text()
        for runs, level in (("AABB", 70), ("AAB", 90), ("AA", 30), ("A", 50)):
            if warm.startswith(runs):
                return level
        return 10

    first, second = compete(order, "counting", "counting", memory=used)
    assert (first.memory, second.memory) == (20, 40)
    assert first.peak_memory in (20, 40) and second.peak_memory in (40, 60)  # sampling may miss a short peak
