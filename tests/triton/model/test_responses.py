"""Events of answers as arrays of the outputs."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from sts_export.generation.next_token.logprobs import TokenLogprobs
from sts_export.generation.result import GenerationResult, KvCacheBytes, Timings, VisualTokens
from sts_export.generation.scheduling.answers import Piece
from sts_export.requests.token_bytes import TokenBytes
from sts_export.triton.model.questions import Returns
from sts_export.triton.model.responses import Outputs, RowResponses, batched
from sts_export.triton.tensors import DTYPES, OUTPUTS

ALL = Returns(cumulative_logprob=True, logprobs=True, kept=True, timings=True)
LOGPROBS = [TokenLogprobs(1, -0.5, ((0, -0.25), (1, -0.5))), TokenLogprobs(0, -2.0, ((1, -0.1),))]
RESULT = GenerationResult(
    "ab", [1, 0], "stop", 9, VisualTokens(20, 4, 2), 3.0, "3", 0, [[1, 3], [0, 2]], [1, 12],
    Timings(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, None), KvCacheBytes(1, 1), logprobs=LOGPROBS,
)  # fmt: skip


def tokens() -> TokenBytes:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.decoder = decoders.ByteLevel()
    return TokenBytes(tokenizer)


def check(outputs: Outputs) -> None:
    """Types and ranks are those of config.pbtxt."""
    declared = {tensor.name: tensor for tensor in OUTPUTS}
    for name, array in outputs.items():
        assert array.dtype == np.dtype(DTYPES[declared[name].kind]), name
        assert array.ndim == 2
        assert declared[name].is_list or array.shape[1:] == declared[name].dims


def test_whole() -> None:
    found = RowResponses(ALL, tokens()).whole(RESULT)
    check(found)
    assert found.keys() == {tensor.name for tensor in OUTPUTS}
    assert found["text_output"][0, 0] == b"ab" and found["num_output_tokens"].tolist() == [[2]]
    assert found["kept_stage1"].tolist() == [[1, 3, 0, 2]] and found["kept_stage1_counts"].tolist() == [[2, 2]]
    assert found["visual_tokens"].tolist() == [[20, 4, 2]] and found["cumulative_logprob"].tolist() == [[-2.5]]
    entries = json.loads(found["logprobs"][0, 0])
    assert entries[0] == {
        "0": {"logprob": -0.25, "rank": 1, "decoded_token": "a"},
        "1": {"logprob": -0.5, "rank": 2, "decoded_token": "b"},
    }
    assert entries[1]["0"]["rank"] is None, "not among those that were asked for"


def test_stream_adds_up_to_the_whole() -> None:
    """Also where the last token brought no text, and its log-probability came with no piece."""
    responses = RowResponses(ALL, tokens(), "asked: ")
    parts = [responses.piece(Piece("ab", 1, (LOGPROBS[0],))), responses.last(RESULT)]
    for part in parts:
        check(part)
    assert [part["text_output"][0, 0] for part in parts] == [b"asked: ab", b""]
    assert [part["num_output_tokens"][0, 0] for part in parts] == [1, 1]
    assert [part["cumulative_logprob"][0, 0] for part in parts] == [-0.5, -2.5]
    assert [len(json.loads(part["logprobs"][0, 0])) for part in parts] == [1, 1]
    assert "finish_reason" not in parts[0] and parts[1]["finish_reason"][0, 0] == b"stop"


def test_only_what_is_wanted() -> None:
    none = Returns(finish_reason=False, num_input_tokens=False, num_output_tokens=False, visual_tokens=False)
    assert RowResponses(none, tokens()).whole(RESULT).keys() == {"text_output"}


@given(st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=4))
def test_rows_of_unequal_length(rows: list[list[int]]) -> None:
    found = batched([{"kept_stage2": np.array([row], np.int32).reshape(1, len(row))} for row in rows])["kept_stage2"]
    assert found.shape == (len(rows), max(map(len, rows)))
    for array, row in zip(found.tolist(), rows, strict=True):
        assert array[: len(row)] == row and set(array[len(row) :]) <= {-1}


def test_rows_that_want_other_outputs() -> None:
    rows = [RowResponses(ALL, tokens()).whole(RESULT), RowResponses(Returns(), tokens()).whole(RESULT)]
    found = batched(rows)
    check(found)
    assert all(len(array) == 2 for array in found.values())
    assert found["timings_ms"][1, 0] == b"" and found["kept_stage2"][1].tolist() == [-1, -1]
