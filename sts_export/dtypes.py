"""Types of tensors' elements, and what the field's tools and formats call each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from sts_export.errors import RequestError
from sts_export.graphs.configs import Dtype

if TYPE_CHECKING:
    import numpy as np

# What weights may be quantized to.
Quantization = Literal["int8", "int4"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)


@dataclass(frozen=True)
class ElementType:
    """One type.

    itemsize: bytes of an element; safetensors: its code in a file's header; onnx: its number in onnx.TensorProto.DataType;
    tensorrt: its name in trt.DataType, None where no graph has such a tensor.
    """

    itemsize: int
    safetensors: str
    onnx: int
    tensorrt: str | None = None


# By numpy's names, which contracts and manifests use.
ELEMENT_TYPES: dict[str, ElementType] = {
    "float64": ElementType(8, "F64", 11),
    "float32": ElementType(4, "F32", 1, "FLOAT"),
    "float16": ElementType(2, "F16", 10, "HALF"),
    "bfloat16": ElementType(2, "BF16", 16, "BF16"),
    "int64": ElementType(8, "I64", 7, "INT64"),
    "int32": ElementType(4, "I32", 6),
    "int16": ElementType(2, "I16", 5),
    "int8": ElementType(1, "I8", 3),
    "uint8": ElementType(1, "U8", 2),
    "bool": ElementType(1, "BOOL", 9, "BOOL"),
}
# Those that a model's numbers may have, and what TensorRT's tools call them.
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


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype of that name, bfloat16 included."""
    import numpy as np

    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
