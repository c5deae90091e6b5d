"""What one row is answered with, as arrays by the names of the outputs, each [1, n]."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.generation.next_token.logprobs import TokenLogprobs
from sts_export.generation.result import GenerationResult
from sts_export.generation.scheduling.answers import Piece
from sts_export.requests.token_bytes import TokenBytes
from sts_export.triton.model.questions import Returns
from sts_export.triton.tensors import DTYPES, OUTPUTS

Outputs = Mapping[str, NDArray[Any]]
_KINDS = {tensor.name: DTYPES[tensor.kind] for tensor in OUTPUTS}
_NONE = -1  # where a row of a batch has fewer values than another


class RowResponses:
    """Of one row, in the order of its tokens.

    Args:
        tokens: bytes of tokens, for log-probabilities.
        before: text that comes before the answer.
    """

    def __init__(self, returns: Returns, tokens: TokenBytes, before: str = "") -> None:
        self._returns, self._tokens, self._before = returns, tokens, before
        self._told, self._sum = 0, 0.0

    def piece(self, piece: Piece) -> Outputs:
        """The next piece of a stream."""
        return self._of(piece.text, piece.tokens, piece.logprobs)

    def last(self, result: GenerationResult) -> Outputs:
        """What a stream ends with: no text, and what is known only now."""
        rest = () if result.logprobs is None else result.logprobs[self._told :]
        return {**self._of("", len(result.token_ids), rest), **self._of_the_end(result)}

    def whole(self, result: GenerationResult) -> Outputs:
        """The one response of an answer that is no stream."""
        return {**self._of(result.text, len(result.token_ids), result.logprobs or ()), **self._of_the_end(result)}

    def _of(self, text: str, tokens: int, logprobs: Sequence[TokenLogprobs]) -> dict[str, NDArray[Any]]:
        found: dict[str, Any] = {"text_output": [(self._before + text).encode()]}
        if self._returns.num_output_tokens:
            found["num_output_tokens"] = [tokens - self._told]
        self._sum += sum(one.logprob for one in logprobs)
        if self._returns.cumulative_logprob:
            found["cumulative_logprob"] = [self._sum]
        if self._returns.logprobs:
            entries = [self._entry(one, is_first=self._told + place == 0) for place, one in enumerate(logprobs)]
            found["logprobs"] = [json.dumps(entries).encode()]
        self._before, self._told = "", tokens
        return {name: _array(name, values) for name, values in found.items()}

    def _of_the_end(self, result: GenerationResult) -> dict[str, NDArray[Any]]:
        returns, visual = self._returns, result.visual_tokens
        wanted: list[tuple[bool, str, Any]] = [
            (returns.finish_reason, "finish_reason", [result.finish_reason.encode()]),
            (returns.num_input_tokens, "num_input_tokens", [result.prompt_tokens]),
            (returns.visual_tokens, "visual_tokens", [visual.total, visual.stage1, visual.stage2]),
            (returns.kept, "kept_stage1", [token for picture in result.kept_stage1 for token in picture]),
            (returns.kept, "kept_stage1_counts", [len(picture) for picture in result.kept_stage1]),
            (returns.kept, "kept_stage2", result.kept_stage2),
            (returns.timings, "timings_ms", [json.dumps(asdict(result.timings_ms)).encode()]),
        ]
        return {name: _array(name, values) for is_wanted, name, values in wanted if is_wanted}

    def _entry(self, one: TokenLogprobs, *, is_first: bool) -> dict[str, Any]:
        """As the vLLM backend has it; the rank of a token that is not among the likeliest asked for is not known."""
        ranks = {token: place for place, (token, _) in enumerate(one.top, start=1)}
        likely = dict(one.top) | {one.token_id: one.logprob}
        return {
            str(token): {
                "logprob": logprob,
                "rank": ranks.get(token),
                "decoded_token": self._tokens.text_of(token, first=is_first).text,
            }
            for token, logprob in likely.items()
        }


def batched(rows: Sequence[Outputs]) -> Outputs:
    """One response of several rows' [rows, n]; what has fewer values than another ends with -1.

    An output that only some rows want is empty, or -1, in the others.
    """
    if len(rows) == 1:
        return rows[0]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: _stacked(name, [row.get(name) for row in rows]) for name in names}


def _stacked(name: str, parts: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
    most = max(part.shape[1] for part in parts if part is not None)
    is_text = _KINDS[name] == np.object_
    fill: Any = b"" if is_text else 0 if np.dtype(_KINDS[name]).kind == "u" else _NONE
    found = np.full((len(parts), most), fill, _KINDS[name])
    for row, part in enumerate(parts):
        if part is not None:
            found[row, : part.shape[1]] = part[0]
    return found


def _array(name: str, values: Sequence[Any]) -> NDArray[Any]:
    return np.array([values], _KINDS[name]).reshape(1, len(values))
