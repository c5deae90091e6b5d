"""Enumerations of TensorRT's Python modules, and its logger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum
from typing import Any


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    BOOL = 4
    BF16 = 7
    INT64 = 8


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(IntEnum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(IntEnum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class ILogger(ABC):
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    INTERNAL_ERROR, ERROR, WARNING = Severity

    @abstractmethod
    def log(self, severity: Any, msg: str) -> None: ...
