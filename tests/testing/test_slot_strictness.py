"""The fakes see every mistake about the slots of KV caches: a backend that makes one is stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sts_export.backends.cuda_runtime import Cuda
from sts_export.backends.tensorrt import backend as backend_module
from sts_export.backends.tensorrt.decode import step_key
from sts_export.backends.tensorrt.memory import DeviceTensor, nbytes_of
from sts_export.backends.tensorrt.part_caches import PartCaches
from sts_export.bundle.manifest import open_bundle
from sts_export.testing.checkpoints import RandomLlava, random_image, write_random_llava
from sts_export.testing.fakes.cuda import FakeCuda, Misuse
from sts_export.testing.fakes.slots import CacheSlots
from tests.support.pipelines import LAYERS, export_to
from tests.support.slots import Slots
from tests.support.tensorrt_backend import FLAVOURS, NEW, OLD, Flavour, open_on

Patch = pytest.MonkeyPatch
ROW, KEY = DeviceTensor.row, step_key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("slot-strictness")
    return export_to(write_random_llava(base / "checkpoint", RandomLlava(seed=62, layers=LAYERS)), base / "bundle")


def work(folder: Path, flavour: Flavour) -> None:
    """Three requests, of which the first ends early and leaves its slot to a shorter one."""
    opened = open_on(folder, flavour)
    slots = Slots(opened.backend, open_bundle(folder), 3)
    assert slots.caches.parts["llm_lower"]._slots_are_aligned  # else they are copied, and nothing is bound that could be wrong
    for slot, words in enumerate(("What is it there?!!!", "What is it?!", "What?")):
        slots.add(slot, slots.inputs(words, [random_image(slot)]))
        slots.step()
    del slots.running[0]
    slots.step()
    slots.add(0, slots.inputs("?"))
    for _ in range(6):
        slots.step()
    del slots.running[1], slots.running[2]
    for _ in range(4):
        slots.step()
    assert opened.device.problems == []


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
def test_without_a_mistake(folder: Path, flavour: Flavour) -> None:
    work(folder, flavour)


def stride(change: Callable[[int], int]) -> Callable[[Patch], None]:
    def spoil(patch: Patch) -> None:
        def row(self: DeviceTensor, index: int) -> DeviceTensor:
            right = ROW(self, index)
            address = self.address + index * change(nbytes_of(self.shape[1:], self.dtype))
            return DeviceTensor(address, right.shape, right.dtype, right.owner)

        patch.setattr(DeviceTensor, "row", row)

    return spoil


def another_slot(patch: Patch) -> None:
    patch.setattr(DeviceTensor, "row", lambda self, index: ROW(self, (index + 1) % self.shape[0]))


def the_first_slot(patch: Patch) -> None:
    patch.setattr(DeviceTensor, "row", lambda self, index: ROW(self, 0))


def swapped(self: PartCaches, slot: int, write_index: int) -> dict[str, DeviceTensor]:
    source, target = self._slot_of(self._tensors[self.current], slot), self._slot_of(self._other, slot)
    return source | {after: target[before] for before, after in self._contract.caches}


def the_other_buffer(patch: Patch) -> None:
    patch.setattr(PartCaches, "slot_bindings", swapped)


def a_change_of_places_for_one_slot(patch: Patch) -> None:
    the_other_buffer(patch)

    def written(self: PartCaches, slot: int, write_index: int) -> None:
        self.current = (self.current + 1) % self.copies
        self._lost[:] = False

    patch.setattr(PartCaches, "slot_written", written)


def a_step_for_any_buffers(patch: Patch) -> None:
    patch.setattr(backend_module, "step_key", lambda caches, slots, feeds: (slots, KEY(caches, slots, feeds)[-1]))


def no_change_of_places(patch: Patch) -> None:
    patch.setattr(PartCaches, "stepped", lambda self, write_index: None)


MISTAKES: dict[str, tuple[Flavour, Callable[[Patch], None], str]] = {
    "half the stride": (NEW, stride(lambda size: size // 512 * 256), "overlaps one of"),
    "one row more": (NEW, stride(lambda size: size + 256), "overlaps one of|0 rows were written"),
    "twice the stride": (NEW, stride(lambda size: 2 * size), "overlaps one of|0 rows were written"),
    "no stride": (NEW, the_first_slot, "rows were written"),
    "another slot": (NEW, another_slot, "rows were written"),
    "another slot, two buffers": (OLD, another_slot, "rows were written|not the latest"),
    "the other buffer": (OLD, the_other_buffer, "not the latest"),
    "a change of places for one slot": (OLD, a_change_of_places_for_one_slot, "not the latest|rows were written"),
    "a step for any buffers": (OLD, a_step_for_any_buffers, "not the latest"),
    "no change of places": (OLD, no_change_of_places, "not the latest|rows were written"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_seen(folder: Path, name: str, monkeypatch: Patch) -> None:
    flavour, spoil, said = MISTAKES[name]
    spoil(monkeypatch)
    with pytest.raises(Misuse, match=said):
        work(folder, flavour)


# What no backend of ours could do wrong by a small change


@pytest.fixture
def slots() -> CacheSlots:
    """One slot of 100 rows in place, of which three are written."""
    made = CacheSlots(Misuse)
    made.call("key", 1024, 1024, 512, [0], 3, 100)
    return made


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda slots: slots.call("key", 1024, 1024, 512, [4], 1, 100), "continued at row 4, and 3 rows were written"),
        (lambda slots: slots.call("key", 1024, 1024, 512, [2], 1, 100), "continued at row 2, and 3 rows were written"),
        (lambda slots: slots.call("key", 1024, 1024, 512, [3, 1], 1, 100), "slot 1 of key is continued at row 1, and 0 rows"),
        (lambda slots: slots.call("key", 1280, 1280, 512, [0], 1, 100), "a slot of key overlaps one of key, 256 bytes apart"),
        (lambda slots: slots.call("key", 768, 768, 512, [0], 1, 100), "a slot of key overlaps one of key, 256 bytes apart"),
        (lambda slots: slots.call("value", 1024, 1024, 512, [0], 1, 100), "a slot of value overlaps one of key"),
        (lambda slots: slots.call("key", 1024, 1024, 256, [0], 1, 100), "a slot of key overlaps one of key"),
        (lambda slots: slots.check_foreign(1500, 100, "logits"), "logits is written into a slot of key"),
        (lambda slots: slots.copied(1280, 4096, 512), "a copy is written into a slot of key"),
    ],
)
def test_calls_that_disagree(slots: CacheSlots, call: Callable[[CacheSlots], Any], said: str) -> None:
    slots.call("key", 1024, 1024, 512, [3], 1, 4)  # what is right
    slots.call("key", 1024, 1024, 512, [3], 1, 4)  # the last row of a full cache, again
    slots.call("key", 1024, 1024, 512, [0], 3, 100)
    with pytest.raises(Misuse, match=said):
        call(slots)


def test_a_copy_takes_the_rows_along(slots: CacheSlots) -> None:
    slots.copied(8192, 1024, 512)
    slots.call("key", 8192, 8192, 512, [3], 1, 100)
    slots.copied(1024, 8192, 512)
    slots.call("key", 1024, 1024, 512, [4], 1, 100)
    slots.copied(1024, 1 << 20, 512)  # from where nobody wrote
    with pytest.raises(Misuse, match="0 rows were written"):
        slots.call("key", 1024, 1024, 512, [5], 1, 100)


def test_freed_slots_are_forgotten(slots: CacheSlots) -> None:
    slots.forget(0, 4096)
    slots.call("value", 1280, 1280, 256, [0], 1, 100)


def test_a_graph_of_memory_that_was_given_to_others() -> None:
    """At the very address that it had."""
    device = FakeCuda()
    cuda = Cuda(device)
    memory, pinned = cuda.allocate(16, "a test"), cuda.allocate_pinned(16)
    graph = cuda.capture(lambda: cuda.to_device(memory.address, pinned.address, 16))
    cuda.launch(graph)
    cuda.synchronize()
    first = device.allocations[memory.address]
    memory.free()
    device.allocations[first.address] = type(first)(first.storage, first.address, first.nbytes, True)
    cuda.launch(graph)
    with pytest.raises(Misuse, match="was freed, and another allocation has its address"):
        cuda.synchronize()
