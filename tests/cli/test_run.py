"""`run`: text as it comes, or JSON with every field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sts_export.cli import main
from tests.cli.helpers import Work


def test_run_json_has_every_field(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(work.run("--json", "--max-new-tokens", "5")) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    result = json.loads(printed.out)
    number = (int, float)
    expected: dict[str, Any] = {
        "text": str,
        "token_ids": list,
        "finish_reason": str,
        "prompt_tokens": int,
        "visual_tokens": {"total": int, "stage1": int, "stage2": int},
        "newline_tokens": int,
        "kept_stage1": list,
        "kept_stage2": list,
        "timings_ms": dict.fromkeys(
            ("preprocess", "vision", "select", "prefill_lower", "prefill_upper", "first_token", "decode_per_token"), number
        ),
        "kv_cache_bytes": {"lower": int, "upper": int},
        "backend": str,
    }
    assert result.keys() == expected.keys()
    for name, kind in expected.items():
        if isinstance(kind, dict):
            assert result[name].keys() == kind.keys()
            assert all(isinstance(result[name][key], inner) for key, inner in kind.items())
        else:
            assert isinstance(result[name], kind)
    assert result["finish_reason"] in ("stop", "length")
    assert 1 <= len(result["token_ids"]) <= 5
    assert all(isinstance(token, int) for token in result["token_ids"])
    assert result["visual_tokens"] == {"total": 36, "stage1": 18, "stage2": 6}
    assert result["newline_tokens"] == 0
    (first,), second = result["kept_stage1"], result["kept_stage2"]
    assert len(first) == 18 and first == sorted(set(first)) and set(first) <= set(range(36))
    assert len(second) == 6 and second == sorted(set(second)) and set(second) <= set(first)
    # 1 layer each, keys and values, 2 KV heads of 16, float32; 60 + 20 rows and what each stage keeps.
    assert result["kv_cache_bytes"] == {"lower": 2 * 2 * 16 * 4 * (80 + 18), "upper": 2 * 2 * 16 * 4 * (80 + 6)}
    assert all(value >= 0 for value in result["timings_ms"].values())


def test_run_streams_the_same_text(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(work.run("--json", "--max-new-tokens", "5")) == 0
    result = json.loads(capsys.readouterr().out)
    assert main(work.run("--max-new-tokens", "5")) == 0
    assert capsys.readouterr().out == result["text"] + "\n"


def test_run_without_a_picture(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", work.bundle, "--prompt", "What is it?", "--json", "--max-new-tokens", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["visual_tokens"] == {"total": 0, "stage1": 0, "stage2": 0}
    assert (result["kept_stage1"], result["kept_stage2"]) == ([], [])
    assert result["timings_ms"]["decode_per_token"] is None


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*arguments, "--json", "--max-new-tokens", "5"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_a_chat_from_a_file(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """One user turn in a file is the prompt; a system message, also by --system, makes the prompt longer."""
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    chat = work.write("chat.json", json.dumps([user]).encode())
    plain = answer(work.run(), capsys)
    assert answer(["run", work.bundle, "--messages", chat, "--image", work.picture], capsys)["token_ids"] == plain["token_ids"]
    system = work.write("system.json", json.dumps([{"role": "system", "content": "Be brief."}, user]).encode())
    longer = answer(["run", work.bundle, "--messages", system, "--image", work.picture], capsys)
    assert longer["prompt_tokens"] > plain["prompt_tokens"]
    for prompt in ("What is it?", "<image>\nWhat is it?"):  # a place written out is not doubled
        shorthand = answer(work.run("--system", "Be brief.", prompt=prompt), capsys)
        assert shorthand["kept_stage1"] == longer["kept_stage1"]
    assert answer(work.run("--system", "Be brief."), capsys)["token_ids"] == longer["token_ids"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"role": "user"}', b"\xff", b"[" * 100_000], ids=range(5))
def test_a_file_that_is_no_chat(work: Work, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    file = work.write("chat.json", content)
    assert main(["run", work.bundle, "--messages", file]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "give a list of messages" in error
    assert main(["run", work.bundle, "--messages", file, "--system", "Be brief."]) == 2
    assert "--system belongs to --prompt" in capsys.readouterr().err
