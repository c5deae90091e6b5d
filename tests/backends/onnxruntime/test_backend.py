"""ONNX Runtime backend: caches in place, batches, refusals of what the engine cannot do."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from sts_export import Pipeline
from sts_export.backends.protocol import LowerInputs
from sts_export.bundle.manifest import record_file
from sts_export.errors import BackendError, RequestError
from sts_export.testing.checkpoints import random_image, random_prompt
from tests.support.pipelines import KEEP, LAYERS, PRUNE_LAYER, export_to


def pointers(caches: Any) -> dict[str, int]:
    return {
        f"{part}.{name}": buffer.data_ptr()
        for part in ("lower", "upper")
        for name, buffer in getattr(caches, part).buffers.items()
    }


def contents(caches: Any) -> dict[str, NDArray[Any]]:
    """A copy of every buffer, [batch, kv_heads, capacity, head_dim]."""
    return {
        f"{part}.{name}": buffer.numpy().copy()
        for part in ("lower", "upper")
        for name, buffer in getattr(caches, part).buffers.items()
    }


def lower_inputs(ids: NDArray[np.int64], positions: NDArray[np.int64], write_index: Any, **more: Any) -> LowerInputs:
    return LowerInputs(ids, np.ones_like(ids), positions, np.array(write_index), **more)


@pytest.mark.parametrize("batch", [1, 3])
def test_caches_are_written_in_place(vlm: Pipeline, batch: int) -> None:
    """After every call the written rows hold the new keys, all others what they held, and no buffer has moved."""
    backend = vlm._backend
    caches: Any = backend.new_caches(batch)
    before = pointers(caches)
    assert len(before) == len(set(before.values())) == 2 * LAYERS
    for buffers in (caches.lower.buffers, caches.upper.buffers):
        for buffer in buffers.values():  # marks that a write beyond its rows would remove
            assert buffer.shape()[0] == batch
            marked = np.full(buffer.shape(), 7.0, np.float32)
            buffer.update_inplace(marked)
    embeds = []
    for index in range(batch):
        image = vlm.prepared(random_image(index))
        kept, rows = backend.select(backend.encode(image.encoder_inputs), image.token_order, image.quota(KEEP[0]))
        assert kept.tolist() == sorted(set(kept.tolist())) and len(kept) == len(rows) == KEEP[0]
        embeds.append([rows])
    ids = np.repeat(vlm.prepare_ids(random_prompt(0), [KEEP[0]])[None], batch, axis=0)
    length, survivors = ids.shape[1], ids.shape[1] - KEEP[0] + KEEP[1]
    positions, begin = np.repeat(np.arange(length)[None], batch, axis=0), np.zeros(batch, np.int64)
    lower = backend.lower(caches, lower_inputs(ids, positions, begin, visual_embeds=embeds, visual_keep=KEEP[1]))
    backend.upper(caches, lower, positions[:, :survivors], begin)
    state = contents(caches)
    for name, buffer in state.items():
        rows = length if name.startswith("lower") else survivors
        assert not (buffer[:, :, :rows] == 7).all(axis=-1).any(), name
        assert (buffer[:, :, rows:] == 7).all(), name
    if batch > 1:  # other pictures, other keys, once the visual rows had an influence
        assert not np.array_equal(state["lower.key_cache.1"][0], state["lower.key_cache.1"][1])
    ahead = np.arange(batch)  # every request may stand in another row
    for step in range(3):
        token, lower_row, upper_row = np.full((batch, 1), 20 + step), length + step + ahead, survivors + step + ahead
        lower = backend.lower(caches, lower_inputs(token, lower_row[:, None], lower_row))
        backend.upper(caches, lower, upper_row[:, None], upper_row)
        after = contents(caches)
        for name, buffer in after.items():
            changed = (buffer != state[name]).any(axis=(1, 3))
            for request in range(batch):
                row = (lower_row if name.startswith("lower") else upper_row)[request]
                assert np.flatnonzero(changed[request]).tolist() == [row], name
        state = after
    assert pointers(caches) == before


def test_no_copy_of_a_cache_is_made(vlm: Pipeline) -> None:
    """Every cache output of a run is the very memory of its input."""
    caches: Any = vlm._backend.new_caches(2)
    both = np.array([[5, 6], [7, 8]])
    lower = vlm._backend.lower(caches, lower_inputs(both, np.array([[0, 1]] * 2), [0, 0]))
    vlm._backend.upper(caches, lower, np.array([[0, 1]] * 2), np.zeros(2, np.int64))
    for part, name in ((caches.lower, "llm_lower"), (caches.upper, "llm_upper")):
        contract = vlm.manifest.graphs[name]
        outputs = part.binding.get_outputs()[: len(contract.caches)]  # bound first
        assert [value.data_ptr() for value in outputs] == [part.buffers[before].data_ptr() for before, _ in contract.caches]


def test_bfloat16_bundle_says_what_to_do(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_to(checkpoint, tmp_path / "bundle", dtype="bfloat16")
    with pytest.raises(BackendError, match=r"cannot run bfloat16; export again with --dtype float32") as caught:
        Pipeline(bundle, backend="onnxruntime")
    assert "\n" not in str(caught.value)


def test_engine_failures_are_one_line(bundle: Path, tmp_path: Path, vlm: Pipeline) -> None:
    """A graph that ONNX Runtime refuses, and a call that it refuses."""
    broken = shutil.copytree(bundle, tmp_path / "broken")
    file = broken / "llm_upper.onnx"
    file.write_bytes(b"no graph")
    manifest = json.loads((broken / "manifest.json").read_text())
    record = record_file(file)
    manifest["graphs"]["llm_upper"].update(size=record.size, sha256=record.sha256)
    (broken / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BackendError, match="ONNX Runtime failed") as caught:
        Pipeline(broken)
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match="ONNX Runtime failed") as caught:
        vlm._backend.encode({"pixel_values": np.zeros((1, 3, 5, 5), np.float32)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_bytes_of_caches(checkpoint: Path, tmp_path: Path, dtype: str, batch: int) -> None:
    """What is reported, what is allocated, and 2 x layers x KV heads x rows x head size x bytes of each half are one number."""
    vlm = Pipeline(export_to(checkpoint, tmp_path / "bundle", dtype=dtype), threads=1)
    decoder, capacities = vlm.manifest.model.decoder, vlm.manifest.capacities
    layers = {"lower": PRUNE_LAYER, "upper": LAYERS - PRUNE_LAYER}
    rows = dict(zip(("lower", "upper"), capacities.rows, strict=True))
    item = {"float32": 4, "float16": 2}[dtype]
    wanted = {
        part: 2 * layers[part] * decoder.num_kv_heads * rows[part] * decoder.head_dim * item for part in ("lower", "upper")
    }
    caches = vlm._backend.new_caches(batch)
    assert {"lower": caches.lower_bytes, "upper": caches.upper_bytes} == {part: batch * size for part, size in wanted.items()}
    allocated = {part: sum(buffer.numpy().nbytes for buffer in getattr(caches, part).buffers.values()) for part in wanted}
    assert allocated == {part: batch * size for part, size in wanted.items()}
    results = vlm.generate(["What?"] * batch, [random_image(0)] * batch, max_new_tokens=1)
    assert all(asdict(result.kv_cache_bytes) == wanted for result in results)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_positive(bundle: Path, threads: int) -> None:
    with pytest.raises(RequestError, match="threads must be at least 1"):
        Pipeline(bundle, threads=threads)


def test_number_of_threads_reaches_the_engine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = ort.InferenceSession

    def session(graph: bytes, options: Any, **kwargs: Any) -> Any:
        asked.append(options.intra_op_num_threads)
        return original(graph, options, **kwargs)

    monkeypatch.setattr(ort, "InferenceSession", session)
    Pipeline(bundle, threads=2)
    assert asked == [2] * 4
