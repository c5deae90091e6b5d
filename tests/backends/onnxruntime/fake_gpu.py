"""A GPU whose sessions and tensors are the CPU's: everything that is asked of CUDA runs there."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_inference_collection as collection

from sts_export.backends.onnxruntime import sessions as onnxruntime_sessions
from sts_export.backends.onnxruntime.sessions import CUDA_PROVIDER


class FakeGpu:
    """What the sessions and the tensors were asked for."""

    def __init__(self) -> None:
        self.options: list[dict[str, str]] = []
        self.threads: list[int] = []
        self.devices: set[str] = set()


def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Put one in."""
    asked = FakeGpu()
    make_device, make_session = collection.OrtDevice.make, ort.InferenceSession

    def device(name: str, *args: Any) -> Any:
        asked.devices.add(name)
        return make_device("cpu", *args)

    class Session(make_session):  # type: ignore[misc, valid-type]
        def __init__(self, graph: bytes, options: Any, *, providers: list[tuple[str, dict[str, str]]]) -> None:
            ((name, settings),) = providers
            assert name == CUDA_PROVIDER
            asked.options.append(settings)
            asked.threads.append(options.intra_op_num_threads)
            super().__init__(graph, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return [CUDA_PROVIDER, "CPUExecutionProvider"]

    monkeypatch.setattr(collection.OrtDevice, "make", staticmethod(device))
    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA_PROVIDER, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime_sessions, "count_gpus", lambda: 1)
    return asked
