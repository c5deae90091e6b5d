"""The dtypes of graphs, by the names that the field's tools give them."""

from __future__ import annotations

from typing import get_args

from sts_export.errors import RequestError
from sts_export.graphs.configs import Dtype

DTYPES: tuple[Dtype, ...] = get_args(Dtype)
_SHORT: dict[str, Dtype] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def dtype_named(name: str) -> Dtype:
    """The dtype that ``name`` means: ``float16`` or, as TensorRT's tools write it, ``fp16``.

    Raises:
        RequestError: no dtype of that name.
    """
    dtype = _SHORT.get(name, name)
    if dtype not in DTYPES:
        raise RequestError(f"unknown dtype {name!r}: choose one of {', '.join(DTYPES)}, or {', '.join(_SHORT)}")
    return dtype
