"""Which GPU an instance runs on."""

from __future__ import annotations

import pytest

from sts_export.triton.device import VISIBLE, choose_gpu


@pytest.mark.parametrize(
    ("seen", "number", "expected"),
    [(None, "0", "0"), (None, "3", "3"), ("2,5", "1", "5"), ("2, 5", "1", "5"), ("GPU-a,GPU-b", "0", "GPU-a"), ("", "1", "1")],
)
def test_gpu(seen: str | None, number: str, expected: str) -> None:
    """Triton counts those that its own process sees."""
    environment = {} if seen is None else {VISIBLE: seen}
    choose_gpu({"model_instance_kind": "GPU", "model_instance_device_id": number}, environment)
    assert environment == {VISIBLE: expected}


def test_cpu() -> None:
    environment: dict[str, str] = {}
    choose_gpu({"model_instance_kind": "CPU", "model_instance_device_id": "0"}, environment)
    assert not environment
