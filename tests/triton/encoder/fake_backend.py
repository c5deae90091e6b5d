"""``triton_python_backend_utils`` as far as a model without metrics uses it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray


class TritonModelException(Exception):
    """As there."""


@dataclass(frozen=True)
class TritonError:
    """As there; the codes are its names here."""

    message: str
    code: str = "INTERNAL"
    INTERNAL = "INTERNAL"
    INVALID_ARG = "INVALID_ARG"


@dataclass(frozen=True)
class Tensor:
    """As there."""

    name: str
    array: NDArray[Any]

    def as_numpy(self) -> NDArray[Any]:
        return self.array


@dataclass(frozen=True)
class InferenceResponse:
    """As there."""

    output_tensors: list[Tensor]
    error: TritonError | None = None

    def __getitem__(self, name: str) -> NDArray[Any]:
        return next(tensor.array for tensor in self.output_tensors if tensor.name == name)


@dataclass(frozen=True)
class Request:
    """What a model gets; strings are bytes in arrays of objects."""

    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, **values: list[bytes]) -> Request:
        return cls({name: Tensor(name, np.array(value, np.object_)) for name, value in values.items()})


@dataclass
class Logger:
    """Lines of errors."""

    errors: list[str] = field(default_factory=list)

    def log_error(self, line: str) -> None:
        self.errors.append(line)


def install(monkeypatch: pytest.MonkeyPatch) -> Logger:
    """For one test, as Triton's stub has it for its process."""
    module: Any = ModuleType("triton_python_backend_utils")
    module.TritonModelException, module.TritonError = TritonModelException, TritonError
    module.Tensor, module.InferenceResponse, module.Logger = Tensor, InferenceResponse, Logger()
    module.get_input_tensor_by_name = lambda request, name: request.tensors.get(name)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    logger: Logger = module.Logger
    return logger
