"""Types of elements: every name and size is what the tool or format itself says."""

from __future__ import annotations

from typing import get_args

import onnx
import pytest
import torch
from safetensors.torch import save

from sts_export.dtypes import ELEMENT_TYPES, numpy_dtype
from sts_export.graphs.configs import Dtype


@pytest.mark.parametrize("name", ELEMENT_TYPES)
def test_names_and_sizes(name: str) -> None:
    element = ELEMENT_TYPES[name]
    assert numpy_dtype(name).name == name and numpy_dtype(name).itemsize == element.itemsize
    assert onnx.helper.tensor_dtype_to_np_dtype(element.onnx) == numpy_dtype(name)
    tensor = torch.zeros(3, dtype=getattr(torch, name))
    assert tensor.itemsize == element.itemsize
    assert f'"dtype":"{element.safetensors}"'.encode() in save({"x": tensor})


def test_names_of_tensorrt() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'sts-export[tensorrt-rtx]'")
    named = {name: element for name, element in ELEMENT_TYPES.items() if element.tensorrt is not None}
    assert {*get_args(Dtype), "int64", "bool"} == {*named}
    for element in named.values():
        assert getattr(trt.DataType, str(element.tensorrt)).itemsize == element.itemsize
