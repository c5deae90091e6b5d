"""Contenders take turns; one that fails is left out with the reason."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sts_export.errors import RequestError, StsExportError
from sts_export.measuring.turns import Contender, Outcome, Rules, alternate, medians, take_turns


@pytest.fixture
def order(tmp_path: Path) -> Path:
    file = tmp_path / "order"
    file.touch()
    return file


def compete(
    order: Path,
    *kinds: str,
    together: bool = True,
    leave_out: bool = True,
    limit_s: float = 60,
    memory: Callable[[], int | None] = lambda: None,
    imports: tuple[str, ...] = (),
) -> list[Outcome]:
    contenders = [
        Contender(name, "tests.measuring.openers:opened", {"kind": kind, "name": name, "order": str(order)}, imports)
        for name, kind in zip("ABC", kinds, strict=False)
    ]
    rules = Rules(
        3,
        warm_ups=2,
        together=together,
        load_at_once=memory() is None and not imports,
        leave_out=leave_out,
        used_memory=memory,
        remaining_s=lambda: limit_s,
    )
    return take_turns(contenders, "the task", rules)


def test_they_take_turns(order: Path) -> None:
    outcomes = compete(order, "counting", "counting")
    assert order.read_text()[-6:] == "ABABAB"
    assert [(outcome.name, outcome.error) for outcome in outcomes] == [("A", None), ("B", None)]
    assert outcomes[0].details == {"warm_up_runs": 2}
    assert outcomes[0].values == {"runs": [3, 4, 5]}  # without the warm-up
    assert outcomes[0].memory is None and outcomes[0].peak_memory is None
    assert all(outcome.load_s is not None and (outcome.peak_rss_mb or 0) > 5 for outcome in outcomes)


def test_one_after_the_other(order: Path) -> None:
    compete(order, "counting", "counting", together=False)
    assert order.read_text() == "AAAAABBBBB"


@pytest.mark.parametrize("together", [True, False])
def test_imports_come_first_and_at_the_same_time(order: Path, together: bool) -> None:
    """Each process waits in its import until the other one is there."""
    meeting = Path(tempfile.gettempdir()) / f"sts-export-tests-{os.getpid()}"
    shutil.rmtree(meeting, ignore_errors=True)
    outcomes = compete(order, "counting", "counting", together=together, imports=("tests.measuring.waits_for_another",))
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert order.read_text() == ("AABBABABAB" if together else "AAAAABBBBB")
    shutil.rmtree(meeting)


def test_an_import_that_fails(order: Path) -> None:
    outcomes = compete(order, "counting", imports=("tests.measuring.absent",))
    assert outcomes[0].error == "ModuleNotFoundError: No module named 'tests.measuring.absent'"


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


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("refusing", RequestError, r"^give another prompt$"),
        ("failing", StsExportError, r"^A could not be measured: ValueError: no more memory; run it alone to see why$"),
        ("dying", StsExportError, r"^A could not be measured: its process died with exit code 7; run it alone to see why$"),
    ],
)
def test_a_failure_is_raised(order: Path, kind: str, error: type[Exception], message: str) -> None:
    """What the contender raised, if it is an error of ours."""
    with pytest.raises(error, match=message) as caught:
        compete(order, kind, leave_out=False)
    assert type(caught.value) is error


def test_alternate() -> None:
    """A's first, B's first, A's second, B's second."""
    numbers = iter(range(6))
    values = alternate({name: lambda: {"at": float(next(numbers))} for name in "AB"}, repeats=3)
    assert values == {"A": {"at": [0, 2, 4]}, "B": {"at": [1, 3, 5]}}
    assert medians(values["B"]) == {"at": 3} and medians({"x": [1.0, 2.0]}) == {"x": 1.5}
