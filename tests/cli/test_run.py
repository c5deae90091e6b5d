"""`run`: text as it comes, or JSON with every field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sts_export import Pipeline
from sts_export.cli import main
from sts_export.requests.logits_config import LogitsConfig
from tests.cli.helpers import Work, rejson

TIMINGS = (
    *("preprocess", "vision", "select", "prefill_lower", "prefill_upper"),
    *("first_token", "decode_per_token", "vision_saved", "select_saved"),
)


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
        "average_visual_tokens": float,
        "budget": str,
        "newline_tokens": int,
        "kept_stage1": list,
        "kept_stage2": list,
        "timings_ms": dict.fromkeys(TIMINGS, number),
        "kv_cache_bytes": {"lower": int, "upper": int},
        "backend": str,
        "operators": type(None),
        "merged_into": type(None),
        "logprobs": type(None),
        "cls_tokens": int,
        "cached_tokens": int,
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


def test_run_json_with_logprobs(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(work.run("--json", "--max-new-tokens", "5", "--logprobs", "2")) == 0
    result = json.loads(capsys.readouterr().out)
    assert [one["token_id"] for one in result["logprobs"]] == result["token_ids"]
    for one in result["logprobs"]:
        assert one["top"][0] == [one["token_id"], one["logprob"]] and len(one["top"]) == 2 and one["logprob"] < 0


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


def test_a_budget_of_the_request(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundle is for 12 tokens on average, 18 and 6; its caches stay as large."""
    usual, less, share, counts = (
        answer(work.run(*options), capsys) for options in ([], ["--budget", "6"], ["--budget", "6.5%"], ["--keep", "7,5"])
    )
    seen = [(one["visual_tokens"]["stage1"], one["visual_tokens"]["stage2"]) for one in (usual, less, share, counts)]
    assert seen == [(18, 6), (9, 3), (4, 1), (7, 5)]
    assert [one["budget"] for one in (usual, less, share, counts)] == ["12", "6", "6.5%", None]
    assert [one["average_visual_tokens"] for one in (usual, less, share, counts)] == [12, 6, 2.5, 6]
    assert less["kv_cache_bytes"] == usual["kv_cache_bytes"] and less["prompt_tokens"] == usual["prompt_tokens"] - 9


# Pushes the answer into a few tokens, among which penalties can choose.
PUSHED = [part for token in range(9, 21) for part in ("--logit-bias", f"{token}=1000")]
BIAS = dict.fromkeys(range(9, 21), 1000.0)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--repetition-penalty", "1.1"], {"repetition_penalty": 1.1}),
        (["--presence-penalty", "2"], {"presence_penalty": 2.0}),
        (["--frequency-penalty", "1.5"], {"frequency_penalty": 1.5}),
        (["--no-repeat-ngram-size", "1"], {"no_repeat_ngram_size": 1}),
        (["--suppress-token", "12", "--suppress-token", "15"], {"suppress_tokens": [12, 15]}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_penalties_and_exclusions(
    work: Work, capsys: pytest.CaptureFixture[str], options: list[str], settings: dict[str, Any]
) -> None:
    """The options are the settings of those names, and change the answer."""
    pipeline = Pipeline(work.bundle)
    config = LogitsConfig(**settings, logit_bias=BIAS)
    differ = 0
    for prompt in ("What is it?", "Where is the cat?", "How many?"):
        ours = answer(work.run(*PUSHED, *options, prompt=prompt), capsys)["token_ids"]
        assert ours == pipeline.generate(prompt, work.picture, max_new_tokens=5, logits=config).token_ids
        differ += ours != answer(work.run(*PUSHED, prompt=prompt), capsys)["token_ids"]
    assert differ


def test_an_answer_of_at_least_so_many_tokens(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    ending = ["--logit-bias", "2=1000"]  # the end token
    assert answer(work.run(*ending), capsys)["token_ids"] == [2]
    longer = answer(work.run(*ending, "--min-new-tokens", "3"), capsys)["token_ids"]
    assert len(longer) == 4 and longer.index(2) == 3


def test_sampling_as_the_checkpoint_wants_it(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """The file decides with --sample alone; without it the answer is greedy; an option goes before the file."""
    checkpoint = work.copy("checkpoint")
    rejson(checkpoint / "generation_config.json", do_sample=True, temperature=1e-6, repetition_penalty=1.2, num_beams=4)
    assert main([*work.export(model=checkpoint), "--weights", "link"]) == 0
    assert capsys.readouterr().err == "note: generation settings of the checkpoint that are not followed: num_beams 4\n"
    bundle = work.output
    greedy = answer(work.run(bundle=bundle), capsys)["token_ids"]
    assert greedy == answer(work.run("--sample", bundle=bundle), capsys)["token_ids"]
    assert greedy != answer(work.run("--repetition-penalty", "1", bundle=bundle), capsys)["token_ids"]
    hot = ["--sample", "--temperature", "3", "--top-k", "0", "--seed", "5"]
    drawn = answer(work.run(*hot, bundle=bundle), capsys)["token_ids"]
    assert drawn == answer(work.run(*hot, bundle=bundle), capsys)["token_ids"] != greedy
    assert drawn == answer(work.run(*hot[1:], bundle=bundle), capsys)["token_ids"]  # a temperature alone samples, too
    assert answer(work.run(*hot, "--min-p", "1", bundle=bundle), capsys)["token_ids"] == greedy
    assert main(["inspect", bundle]) == 0
    text = capsys.readouterr().out
    assert "answers   repetition_penalty 1.2; with --sample temperature 1e-06, top_k 50, top_p 1, min_p 0; " in text
    assert "; not followed: num_beams 4\n" in text
