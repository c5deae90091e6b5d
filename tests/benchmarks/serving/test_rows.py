"""Rows, tables and ratios of what clients saw, and the options of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.serving import peer
from benchmarks.serving.__main__ import make_parser, record
from benchmarks.serving.clients import Seen
from benchmarks.serving.contenders import TRITON
from benchmarks.serving.rows import Row, comparison, ratios, row, table
from benchmarks.serving.server import served


def found(clients: int, tokens: int, first: float) -> Row:
    seen = Seen(right=3, wrong=1, cancelled=2, tokens=tokens, first=[first, first], gaps=[0.01, 0.03], seconds=2.0, cpu=0.6)
    return row(clients, seen, 100.0)


OURS = [found(1, 80, 0.1), found(8, 240, 0.4)]
PEER = [found(1, 40, 0.5), found(8, 80, 1.6)]


def test_a_row_has_rates_and_milliseconds() -> None:
    one = OURS[0]
    assert (one["tokens_per_s"], one["answers_per_s"], one["failed"]) == (40.0, 2.0, 0)
    assert one["first_token_ms"]["p50"] == pytest.approx(100) and one["inter_token_ms"]["p50"] == pytest.approx(20)
    assert row(1, Seen(seconds=1.0), 1.0)["first_token_ms"] == {"p50": 0.0, "p99": 0.0}


def test_clients_tell_what_an_answer_costs_them() -> None:
    assert OURS[0]["client_cpu_ms"] == pytest.approx(600 / 6)  # of the answers that were given up, too
    assert row(1, Seen(seconds=1.0, cpu=0.5), 1.0)["client_cpu_ms"] == 500


def test_ratios_are_ours_over_the_peer_s_at_as_many_clients() -> None:
    one, eight = ratios(OURS, PEER)
    assert (one["clients"], one["tokens_per_s"], eight["tokens_per_s"]) == (1, 2.0, 3.0)
    assert one["first_token_p50"] == pytest.approx(0.2) and eight["first_token_p99"] == pytest.approx(0.25)
    assert one["inter_token_p50"] == one["rss"] == one["client_cpu"] == 1.0


def test_where_the_peer_has_nothing_there_is_no_ratio() -> None:
    nothing = row(1, Seen(seconds=1.0), 50.0)
    assert ratios(OURS[:1], [nothing])[0] == {
        "clients": 1,
        "tokens_per_s": None,
        "first_token_p50": None,
        "first_token_p99": None,
        "inter_token_p50": None,
        "inter_token_p99": None,
        "rss": 2.0,
        "client_cpu": None,
    }
    assert comparison({"ours": OURS[:1], "peer": [nothing]}, "peer")
    with pytest.raises(ValueError):
        ratios(OURS, PEER[:1])


def test_the_table_has_a_line_a_row() -> None:
    assert [line.split()[:3] for line in table(OURS).splitlines()[1:]] == [["1", "40.0", "1.00"], ["8", "120.0", "3.00"]]
    assert table(OURS[1:], against=OURS[0]).splitlines()[1] == table(OURS).splitlines()[2]


def test_the_comparison_has_contenders_and_ratios_at_each_number_of_clients() -> None:
    lines = comparison({"ours": OURS, "unpruned": PEER, "peer": PEER}, "peer").splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + 2 * 5
    assert lines[2].startswith("| 1 | ours | 40.0 | 100, 100 ms | 20, 30 ms | 3, 1, 2, 0 | 100 MB | 100.0 ms |")
    assert lines[5].startswith("| 1 | **ours / peer** | **2.00** | 0.20, 0.20 | 1.00, 1.00 |")
    assert [line.split(" | ")[1] for line in lines[7:]] == [
        "ours",
        "unpruned",
        "peer",
        "**ours / peer**",
        "**unpruned / peer**",
    ]


def test_a_run_without_a_peer_is_as_it_was() -> None:
    args = make_parser().parse_args([])
    assert (args.budget, args.clients, args.peer, args.reuse) == (["64"], [1, 2, 4, 8, 16], None, None)
    assert (args.triton, args.give_up) == (False, 11)
    assert set(record(args, {"ours": OURS}, {}, {})) == {"date", "commit", "processors", "options", "rows", "soak"}


def test_the_record_of_a_comparison_has_both_and_no_path() -> None:
    args = make_parser().parse_args(["--peer", "somewhere/python", "--budget", "64", "none", "--reuse", "none"])
    versions = {peer.NAME: {"openvino-genai": "1"}}
    kept = json.loads(json.dumps(record(args, {"a": OURS, "b": PEER, peer.NAME: PEER}, {}, versions)))
    assert kept["contenders"] == {"a": OURS, "b": PEER, peer.NAME: PEER} and kept["rows"] == OURS
    assert kept["peer"] == {"name": peer.NAME, "versions": {"openvino-genai": "1"}}
    assert list(kept["ratios"]) == ["a", "b"] and kept["ratios"]["a"][1]["tokens_per_s"] == 3.0
    assert kept["options"]["reuse"] == "none" and "somewhere" not in json.dumps(kept)


def test_the_record_of_a_run_with_triton_has_its_ratios_to_the_first_one_and_its_soak() -> None:
    args = make_parser().parse_args(["--triton", "--reuse", "pictures"])
    memory = {"a": [{"rss_mb": 1.0}], TRITON: [{"rss_mb": 2.0}]}
    kept = json.loads(json.dumps(record(args, {"a": OURS, TRITON: PEER}, memory, {TRITON: {"tritonserver": "2"}})))
    assert kept["contenders"] == {"a": OURS, TRITON: PEER} and (kept["rows"], kept["soak"]) == (OURS, memory["a"])
    found = kept["triton"]
    assert (found["name"], found["versions"], found["against"]) == (TRITON, {"tritonserver": "2"}, "a")
    assert [one["tokens_per_s"] for one in found["ratios"]] == [0.5, pytest.approx(1 / 3)] and found["soak"] == memory[TRITON]
    assert "peer" not in kept and "ratios" not in kept


def test_neither_server_reuses_what_the_other_may_not(tmp_path: Path) -> None:
    fresh, reusing = (served(tmp_path, "m", 8, reuse=reuse) for reuse in ("none", "all"))
    assert fresh[-3:] == ["--feature-cache", "0", "--no-prefix-reuse"] and fresh[:-3] == reusing
    assert peer.served("python", tmp_path, 8, 256, reuse=True) == [
        *peer.served("python", tmp_path, 8, 256, reuse=False),
        "--reuse",
    ]
