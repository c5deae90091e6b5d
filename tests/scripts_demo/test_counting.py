"""From scored answers to rows: shares, kinds and tests."""

from __future__ import annotations

import math

from scripts.demo_results.measuring import counted
from scripts.demo_results.planning import Cell
from scripts.demo_results.records import Count
from scripts.demo_results.variants import STS, UNPRUNED, Table, Variant
from sts_export.evaluation.results.rows import Row
from sts_export.evaluation.results.statistics import wilson

RANDOM, FASTV = Variant("random", method="random"), Variant("fastv", method="fastv")
TABLE = Table("t", "T", 20, (64, 32), (STS, RANDOM, FASTV), (UNPRUNED,), "sts", pairs=(("sts", "random"),))


def answered(scores: str) -> Row:
    """1 or 0 a question; kinds take turns."""
    units = {str(place): ("ab"[place % 2], float(score)) for place, score in enumerate(scores)}
    right, asked = scores.count("1"), len(scores)
    share, interval = right / asked, wilson(right, asked)
    names = {"bundle": "b", "method": "m", "budget": "9,3", "task": "demo", "score_name": "accuracy"}
    figures = {"accuracy": share, "interval": interval, "score": 100 * share, "score_interval": interval}
    counts = {"keep": (9, 3), "average_visual_tokens": 5.0, "first_token_ms": 1.0}
    return Row(**names, **figures, **counts, unpruned=False, units=units, metrics={})  # type: ignore[arg-type]


FOUND = {
    Cell(UNPRUNED, None, (576, 576), 576): answered("11111111"),
    Cell(STS, 64, (96, 32), 64): answered("11111100"),
    Cell(RANDOM, 64, (96, 32), 64): answered("10000010"),
    Cell(FASTV, 64, (576, 64), 192, reached=False): answered("00000000"),
    Cell(STS, 32, (48, 16), 32): answered("11110000"),
}


def test_rows_keep_their_order_and_their_counts() -> None:
    rows = counted(TABLE, FOUND)
    assert [(row.name, row.budget) for row in rows] == [
        ("unpruned", None),
        ("sts", 64),
        ("random", 64),
        ("fastv", 64),
        ("sts", 32),
    ]
    assert [(row.asked, row.right) for row in rows] == [(8, 8), (8, 6), (8, 2), (8, 0), (8, 4)]
    assert [row.relative for row in rows] == [1, 0.75, 0.25, 0, 0.5]
    assert rows[1].kinds == {"a": Count(4, 3), "b": Count(4, 3)}
    assert (rows[1].low, rows[1].high) == wilson(6, 8)


def test_tests_are_against_the_base_and_in_pairs_at_the_same_budget() -> None:
    unpruned, sts, random, fastv, small = counted(TABLE, FOUND)
    # Five questions against one: 2 (1 + 6) / 2^6.
    assert random.mcnemar_p == {"sts": 14 / 64}
    assert sts.mcnemar_p == {"random": 14 / 64}
    assert unpruned.mcnemar_p == small.mcnemar_p == {}
    # What does not reach the budget has another one.
    assert fastv.mcnemar_p == {}


def test_nothing_is_relative_to_nothing() -> None:
    whole, sts, *_ = FOUND
    first, second = counted(TABLE, {whole: answered("00"), sts: answered("10")})
    assert first.relative is second.relative is None
    assert math.isclose(second.accuracy, 0.5)
