"""The pool between the engines: what is idle is found again, bounded, and given back when memory is short."""

from __future__ import annotations

import pytest

from sts_export.backends.cuda_runtime import Cuda
from sts_export.backends.tensorrt.memory import DevicePool, size_class
from sts_export.errors import BackendError
from sts_export.testing.fakes.cuda import FakeCuda

MIB = 1 << 20
IDLE = 64 * MIB  # what a pool may keep


@pytest.fixture
def device() -> FakeCuda:
    return FakeCuda()


def test_size_classes() -> None:
    """Multiples of 256, never less than asked, at most an eighth more, eight for each power of two."""
    sizes = [*range(5000), *(1000003 * factor for factor in range(1, 3000))]
    classes = [size_class(size) for size in sizes]
    for size, given in zip(sizes, classes, strict=True):
        assert given % 256 == 0 and max(size, 256) <= given <= max(size + 256, size * 9 / 8)
        assert size_class(given) == given
    assert classes == sorted(classes)
    assert sorted({size_class(size) for size in range(MIB + 1, 2 * MIB + 1, 64)}) == [MIB // 8 * n for n in range(9, 17)]


def test_growing_prompts_keep_little(device: FakeCuda) -> None:
    """Requests of a 7B decoder, each longer than the one before: few allocations, and no block for each length."""
    pool = DevicePool(Cuda(device))
    for length in range(200, 1500, 10):
        tensors = [
            pool.take((1, 96, 4096), "float16"),
            pool.take((1, length, 4096), "float16"),
            pool.take((1, length), "int64"),
        ]
        del tensors
    assert device.live(True) <= IDLE + 1500 * 4096 * 2 * 9 // 8
    before = device.calls["cudaMalloc"]
    assert before < 60
    for length in range(1400, 1500):
        pool.take((1, length, 4096), "float16")
    assert device.calls["cudaMalloc"] == before


def test_what_was_idle_for_longest_is_given_back(device: FakeCuda) -> None:
    pool = DevicePool(Cuda(device))
    for mib in (10, 11, 12, 13, 14, 15):  # none fits the next
        pool.take((mib * MIB,), "bool")
    assert device.live(True) == 75 * MIB
    largest = pool.take((16 * MIB,), "bool")  # 75 are idle: those of 10 and 11 go
    assert device.live(True) == (12 + 13 + 14 + 15 + 16) * MIB
    again = [pool.take((mib * MIB,), "bool") for mib in (10, 13, 14, 15)]
    assert device.calls["cudaMalloc"] == 7
    del largest, again


def test_what_is_in_use_together_may_be_idle_together(device: FakeCuda) -> None:
    """However much: the next request needs it again."""
    pool = DevicePool(Cuda(device))
    for _ in range(3):
        tensors = [pool.take((mib * MIB,), "bool") for mib in (40, 40, 20)]
        del tensors
        pool.take((1,), "bool")
    assert device.calls["cudaMalloc"] == 4


def test_a_pool_is_trimmed_for_any_allocation() -> None:
    """What is in use stays."""
    device = FakeCuda(memory=MIB)
    cuda = Cuda(device)
    pool = DevicePool(cuda)
    used, idle = pool.take((300_000,), "bool"), pool.take((500_000,), "bool")
    del idle
    before = device.live(True)
    memory = cuda.allocate(600_000, "a test")
    assert device.live(True) < before + 200_000
    with pytest.raises(BackendError, match="not enough GPU memory for activations between the engines"):
        pool.take((300_000,), "bool")
    memory.free()
    assert pool.take((300_000,), "bool").address != used.address
    assert device.problems == []
