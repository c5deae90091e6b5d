"""Requests to a Triton server through its official client, one on each stream: several that are cancelled together end 2.51."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.generation.result import GenerationResult
from sts_export.triton.tensors import DTYPES, INPUTS

PATIENCE = 60.0  # seconds for the next response
_KINDS = {tensor.name: tensor.kind for tensor in INPUTS}
_WIRE = {"TYPE_STRING": "BYTES"}


@dataclass(frozen=True)
class Answered:
    """All responses to one request.

    Args:
        responses: arrays by name, of each response; the last one may have none.
        error: the line that ended it; None where it is whole.
    """

    responses: Sequence[Mapping[str, NDArray[Any]]]
    error: str | None = None

    def all(self, name: str, row: int = 0) -> list[Any]:
        """Values of one output in all responses that have it."""
        return [value for found in self.responses if name in found for value in found[name][row].tolist()]

    def text(self, row: int = 0) -> str:
        return b"".join(self.all("text_output", row)).decode()


class Stream:
    """One request on its way."""

    def __init__(self, client: Any) -> None:
        self._client, self._is_over = client, False
        self._found: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        client.start_stream(lambda result, error: self._found.put((result, error)))

    def ask(self, model: str, inputs: Sequence[Any], outputs: Sequence[Any] | None) -> None:
        self._client.async_stream_infer(model, inputs, outputs=outputs, enable_empty_final_response=True)

    def next(self) -> tuple[Mapping[str, NDArray[Any]], bool]:
        """The next response, and whether it is the last one.

        Raises:
            InferenceServerException: an error ended the answer.
        """
        result, error = self._found.get(timeout=PATIENCE)
        if error is not None:
            self._is_over = True
            raise error
        response = result.get_response()
        arrays = {one.name: result.as_numpy(one.name) for one in response.outputs}
        self._is_over = response.parameters["triton_final_response"].bool_param
        return arrays, self._is_over

    def leave(self) -> None:
        """Read nothing more, and tell the server, unless everything had come.

        Of an answer that is over, 2.51 sometimes keeps what it is told to cancel, and then never ends.
        """
        self._client.stop_stream(cancel_requests=not self._is_over)

    def rest(self) -> Answered:
        """Everything up to the end."""
        from tritonclient.utils import InferenceServerException

        found: list[Mapping[str, NDArray[Any]]] = []
        is_last = False
        while not is_last:
            try:
                arrays, is_last = self.next()
            except InferenceServerException as error:
                return Answered(found, error.message())
            found.append(arrays)
        return Answered(found)


@contextmanager
def asked(address: str, model: str, *, wanted: Sequence[str] = (), rows: int = 1, **inputs: Any) -> Iterator[Stream]:
    """A request over gRPC.

    Args:
        address: of the server's gRPC.
        wanted: outputs to ask for; none: all.
        rows: of the batch; with more than one, each input is a list with one value, or one list, for each row.
        inputs: by their names: a value, or a list of them where there may be several.
    """
    from tritonclient.grpc import InferenceServerClient, InferRequestedOutput

    with InferenceServerClient(address) as client:
        stream = Stream(client)
        given = [_input(name, value, rows) for name, value in inputs.items()]
        stream.ask(model, given, [InferRequestedOutput(name) for name in wanted] or None)
        try:
            yield stream
        finally:
            stream.leave()


def answer(address: str, model: str, **options: Any) -> Answered:
    """As :func:`asked`, to its end."""
    with asked(address, model, **options) as stream:
        return stream.rest()


def _input(name: str, value: Any, rows: int) -> Any:
    from tritonclient.grpc import InferInput

    of_rows = [value] if rows == 1 else value
    lists = [one if isinstance(one, list) else [one] for one in of_rows]
    kind = _KINDS[name]
    values = [[part.encode() if isinstance(part, str) else part for part in one] for one in lists]
    array = np.array(values, DTYPES[kind])
    tensor = InferInput(name, array.shape, _WIRE.get(kind, kind.removeprefix("TYPE_")))
    tensor.set_data_from_numpy(array)
    return tensor


def check_same(found: Answered, expected: GenerationResult, row: int = 0) -> None:
    """An answer through Triton is the pipeline's own."""
    assert found.error is None, found.error
    visual = expected.visual_tokens
    assert found.text(row) == expected.text
    assert found.all("finish_reason", row) == [expected.finish_reason.encode()]
    assert sum(found.all("num_output_tokens", row)) == len(expected.token_ids)
    assert found.all("num_input_tokens", row) == [expected.prompt_tokens]
    assert found.all("visual_tokens", row) == [visual.total, visual.stage1, visual.stage2]
