"""Questions over gRPC through Triton's official client, a stream each: several that are cancelled on one stream end 2.51."""

from __future__ import annotations

import queue
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.serving.questions import Asked
from benchmarks.serving.streams import PATIENCE, Ask, Told, Transport
from sts_export.triton.tensors import DTYPES, INPUTS

_KINDS = {tensor.name: tensor.kind for tensor in INPUTS}


@contextmanager
def over_grpc(address: str) -> Iterator[Ask]:
    """One client; each answer is a stream of its own."""
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(address) as client:
        yield lambda body: _answer(client, body)


def tensors(asked: Asked, model: str, counted: bool) -> dict[str, Any]:
    """The model's name and values of its inputs by their names; answers always say how many tokens they have."""
    inputs = {
        "text_input": asked.prompt.encode(),
        "image": asked.picture,
        "stream": True,
        "max_tokens": asked.tokens,
        "ignore_eos": True,
        **({} if asked.budget is None else {"budget": asked.budget.encode()}),
    }
    return {"model": model, "inputs": inputs}


def _answer(client: Any, body: Mapping[str, Any]) -> Generator[Told]:
    """Raises ValueError: the server refuses, its answer breaks off, or nothing comes."""
    found: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: found.put((result, error)))
    is_over, tokens = False, 0
    try:
        inputs = [_input(name, value) for name, value in body["inputs"].items()]
        client.async_stream_infer(body["model"], inputs, enable_empty_final_response=True)
        while not is_over:
            result, error = _next(found)
            if error is not None:
                is_over = True
                raise ValueError(f"the server refuses, or the answer broke off: {error}")
            is_over = result.get_response().parameters["triton_final_response"].bool_param
            text, reason, count = (result.as_numpy(name) for name in ("text_output", "finish_reason", "num_output_tokens"))
            tokens += 0 if count is None else int(count[0, 0])
            said = "" if text is None else text[0, 0].decode()
            yield Told(said, None if reason is None else reason[0, 0].decode(), tokens)
    finally:
        client.stop_stream(cancel_requests=not is_over)


def _next(found: queue.SimpleQueue[tuple[Any, Any]]) -> tuple[Any, Any]:
    try:
        return found.get(timeout=PATIENCE)
    except queue.Empty:
        raise ValueError(f"nothing came for {PATIENCE:.0f} s") from None


def _input(name: str, value: Any) -> Any:
    from tritonclient.grpc import InferInput

    kind = _KINDS[name]
    array = np.array([[value]], DTYPES[kind])  # [1 row of the batch, 1 value]
    tensor = InferInput(name, [1, 1], "BYTES" if kind == "TYPE_STRING" else kind.removeprefix("TYPE_"))
    tensor.set_data_from_numpy(array)
    return tensor


GRPC = Transport(over_grpc, tensors)
