"""What Triton's Python backend hands over -> plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from sts_export.serving.problems import Problem, ProblemError
from sts_export.triton.model.questions import Row

# Parameters that Triton itself, its clients or its frontends put into requests.
_OF_TRITON = {"id", "binary_data_output", "priority", "timeout", "headers", "classification"}
_BEGINNINGS = ("triton_", "sequence_")


def rows_of(request: Any) -> list[Row]:
    """Values of every row of the batch; Triton has checked that all tensors have as many rows.

    Args:
        request: pb_utils.InferenceRequest.  What is returned does not use its memory.
    """
    tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    count = max((len(array) for array in tensors.values()), default=1)
    return [{name: values_of(array[row]) for name, array in tensors.items()} for row in range(count)]


def values_of(array: NDArray[Any]) -> Sequence[Any]:
    """Bytes, truth values, whole numbers, or floats with the digits that their float32 needs: 0.7 is 0.7."""
    flat = array.reshape(-1)
    if flat.dtype.kind == "f":
        return [float(str(value)) for value in flat]
    if flat.dtype.kind == "O":
        return [value if isinstance(value, bytes) else str(value).encode() for value in flat]
    values: list[Any] = flat.tolist()
    return values


def parameters_of(request: Any) -> Mapping[str, Any]:
    """Those of a request that are not Triton's own.

    Raises:
        ProblemError: they are no text.
    """
    try:
        found = json.loads(request.parameters() or "{}")
    except ValueError:  # HTTP takes any bytes
        raise ProblemError(Problem(400, "the request's parameters are no text in UTF-8; correct them")) from None
    return {name: value for name, value in found.items() if name not in _OF_TRITON and not name.startswith(_BEGINNINGS)}
