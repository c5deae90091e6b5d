"""config.pbtxt of a model: ModelConfig of triton-inference-server/common (model_config.proto) in protobuf's text format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sts_export.errors import RequestError
from sts_export.requests.request import check_count
from sts_export.triton.tensors import Tensor


@dataclass(frozen=True)
class Instances:
    """How often, and on what, a model is loaded.  Each instance is a process with weights, slots and a queue of its own.

    Args:
        gpus: device numbers, on each of which there are ``count``; none: on the CPU.

    Raises:
        RequestError: not a count, or a GPU twice.
    """

    count: int = 1
    gpus: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_count("instances", self.count)
        if any(number < 0 for number in self.gpus) or len(set(self.gpus)) != len(self.gpus):
            raise RequestError(f"GPUs are different numbers from 0 on, not {list(self.gpus)}; correct them")


def config_text(
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    parameters: Mapping[str, str],
    instances: Instances,
    *,
    max_batch_size: int,
    decoupled: bool,
) -> str:
    """The whole file.

    Args:
        max_batch_size: rows of a request; 0: the tensors have no batch dimension.
        decoupled: whether a request may have any number of responses.
    """
    kind = f"KIND_GPU, gpus: [ {', '.join(map(str, instances.gpus))} ]" if instances.gpus else "KIND_CPU"
    blocks = [
        f"name: {_quoted(name)}",
        'backend: "python"',
        f"max_batch_size: {max_batch_size}",
        *(["model_transaction_policy { decoupled: true }"] if decoupled else []),
        _tensors("input", inputs, " optional: true"),
        _tensors("output", outputs, ""),
        f"instance_group [ {{ count: {instances.count}, kind: {kind} }} ]",
        *(_parameter(key, text) for key, text in parameters.items()),
    ]
    return "\n".join(blocks) + "\n"


def _tensors(block: str, tensors: Sequence[Tensor], more: str) -> str:
    lines = [
        f'  {{ name: "{one.name}" data_type: {one.kind} dims: [ {", ".join(map(str, one.dims))} ]{more} }}' for one in tensors
    ]
    return f"{block} [\n" + ",\n".join(lines) + "\n]"


def _parameter(key: str, text: str) -> str:
    return f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(text)} }} }}"


def _quoted(text: str) -> str:
    """JSON's escapes are among those of protobuf's text format."""
    return json.dumps(text)
