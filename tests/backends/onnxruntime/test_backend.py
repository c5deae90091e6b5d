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
from sts_export.bundle.records import record_file
from sts_export.errors import BackendError, RequestError
from sts_export.graphs.decoder.parts import FIRST, LAST
from sts_export.testing.checkpoints import random_image, random_prompt
from tests.support.pipelines import KEEP, LAYERS, PRUNE_LAYER, export_to


def buffers_of(caches: Any) -> dict[str, Any]:
    return {f"{part}.{name}": buffer for part, own in caches.parts.items() for name, buffer in own.buffers.items()}


def pointers(caches: Any) -> dict[str, int]:
    return {name: buffer.data_ptr() for name, buffer in buffers_of(caches).items()}


def contents(caches: Any) -> dict[str, NDArray[Any]]:
    """A copy of every buffer, [slots, kv_heads, capacity, head_dim]."""
    return {name: buffer.numpy().copy() for name, buffer in buffers_of(caches).items()}


def mark(caches: Any) -> None:
    """Fill all rows with sevens, which a write removes."""
    for buffer in buffers_of(caches).values():
        buffer.update_inplace(np.full(buffer.shape(), 7.0, np.float32))


def embeddings(vlm: Pipeline, seed: int) -> Any:
    """What stage 1 leaves of a picture, [1, K, hidden] on the engine's side."""
    backend, image = vlm._backend, vlm.prepared(random_image(seed))
    features = backend.run("vision_encoder", image.encoder_inputs)
    feeds = {**features, "token_order": image.token_order, "quota": image.quota(KEEP[0])}
    chosen = backend.run("selector", feeds, fetch=("kept_index",))
    kept = chosen["kept_index"]
    assert kept.tolist() == sorted(set(kept.tolist())) and len(kept) == KEEP[0]
    return backend.joined([backend.rows(chosen["visual_embeds"], KEEP[0])])


def prompt_feeds(vlm: Pipeline, seed: int) -> tuple[dict[str, Any], dict[str, Any], int, int]:
    """Inputs of either part for a prompt with a picture, and its rows in either part."""
    ids = vlm.prepare_ids(random_prompt(seed), [KEEP[0]])
    length, survivors = len(ids), len(ids) - KEEP[0] + KEEP[1]
    lower = {
        "input_ids": ids[None],
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(length)[None],
        "write_index": np.zeros(1, np.int64),
        "stage2_slots": np.zeros(KEEP[1], np.int64),
        "visual_embeds": embeddings(vlm, seed),
    }
    return lower, {"position_ids": np.arange(survivors)[None], "write_index": np.zeros(1, np.int64)}, length, survivors


def step_feeds(tokens: Any, lower: Any, upper: Any) -> dict[str, dict[str, NDArray[np.int64]]]:
    """One token of every slot."""
    ids = np.asarray(tokens)[:, None]
    return {
        FIRST: {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.asarray(lower)[:, None],
            "write_index": np.asarray(lower),
            "stage2_slots": np.zeros(1, np.int64),
        },
        LAST: {"position_ids": np.asarray(upper)[:, None], "write_index": np.asarray(upper)},
    }


def prefill(vlm: Pipeline, caches: Any, slot: int, seed: int) -> tuple[NDArray[np.float32], int, int]:
    """Logits, and the rows that the prompt took in either part."""
    lower, upper, length, survivors = prompt_feeds(vlm, seed)
    outputs = vlm._backend.run(FIRST, lower, caches=caches, slot=slot)
    assert outputs.keys() == {"hidden_states", "kept_rows", "kept_position_ids", "last_row"}
    passed = {name: outputs[name] for name in ("hidden_states", "last_row")}
    logits = vlm._backend.run(LAST, {**passed, **upper}, caches=caches, slot=slot, fetch=("logits",))["logits"]
    return logits, length, survivors


@pytest.mark.parametrize("slots", [1, 3])
def test_caches_are_written_in_place(vlm: Pipeline, slots: int) -> None:
    """After every call the written rows hold the new keys, all others what they held, and no buffer has moved."""
    backend = vlm._backend
    caches: Any = backend.new_caches(slots)
    before = pointers(caches)
    assert len(before) == len(set(before.values())) == 2 * LAYERS
    assert all(buffer.shape()[0] == slots for buffer in buffers_of(caches).values())
    mark(caches)
    rows = {FIRST: np.zeros(slots, np.int64), LAST: np.zeros(slots, np.int64)}
    for slot in reversed(range(slots)):  # a prompt is written to its own slot, wherever that is
        state = contents(caches)
        _, rows[FIRST][slot], rows[LAST][slot] = prefill(vlm, caches, slot, seed=slot)
        for name, buffer in contents(caches).items():
            written = rows[name.partition(".")[0]][slot]
            assert not (buffer[slot, :, :written] == 7).all(axis=-1).any(), name
            assert (buffer[slot, :, written:] == 7).all(), name
            others = np.arange(slots) != slot
            np.testing.assert_array_equal(buffer[others], state[name][others], err_msg=name)
    state = contents(caches)
    if slots > 1:  # other pictures, other keys, once the visual rows had an influence
        assert not np.array_equal(state[f"{FIRST}.key_cache.1"][0], state[f"{FIRST}.key_cache.1"][1])
    ahead = np.arange(slots)  # every request may stand in another row
    for step in range(3):
        lower, upper = rows[FIRST] + step + ahead, rows[LAST] + step + ahead
        logits = backend.decode(caches, step_feeds([20 + step] * slots, lower, upper))
        assert logits.shape == (slots, vlm.manifest.model.decoder.vocab_size)
        after = contents(caches)
        for name, buffer in after.items():
            changed = (buffer != state[name]).any(axis=(1, 3))
            for slot in range(slots):
                row = (lower if name.startswith(FIRST) else upper)[slot]
                assert np.flatnonzero(changed[slot]).tolist() == [row], name
        state = after
    assert pointers(caches) == before


@pytest.mark.parametrize("used", [1, 2, 3])
def test_a_step_of_the_first_slots_leaves_the_others_alone(vlm: Pipeline, used: int) -> None:
    """Of four slots; and their logits are those of slots of their own."""
    backend = vlm._backend
    caches: Any = backend.new_caches(4)
    mark(caches)
    rows = np.array([prefill(vlm, caches, slot, seed=slot)[1:] for slot in range(4)])
    before = contents(caches)
    logits = backend.decode(caches, step_feeds(range(20, 20 + used), *rows[:used].T))
    for name, buffer in contents(caches).items():
        np.testing.assert_array_equal(buffer[used:], before[name][used:], err_msg=name)
    for slot in range(used):
        own: Any = backend.new_caches(1)
        _, lower, upper = prefill(vlm, own, 0, seed=slot)
        alone = backend.decode(own, step_feeds([20 + slot], [lower], [upper]))
        np.testing.assert_allclose(logits[slot], alone[0], rtol=1e-4, atol=1e-4)


def test_no_copy_of_a_cache_is_made(vlm: Pipeline) -> None:
    """Every cache output of a run is the very memory of its input: the slots' own part of the buffer."""
    caches: Any = vlm._backend.new_caches(3)
    rows = prefill(vlm, caches, 0, seed=0)[1:]
    vlm._backend.decode(caches, step_feeds([0, 5], *([row, 0] for row in rows)))
    for name, part in caches.parts.items():
        contract = vlm.manifest.graphs[name]
        assert part.bindings.keys() == {(0, 1), (0, 2)}
        for (first, count), binding in part.bindings.items():
            outputs = binding.get_outputs()[: len(contract.caches)]  # bound first
            buffers = [part.buffers[before] for before, _ in contract.caches]
            shapes = [[count, *buffer.shape()[1:]] for buffer in buffers]
            assert [value.shape() for value in outputs] == shapes
            slot_bytes = [buffer.numpy()[:1].nbytes for buffer in buffers]
            wanted = [buffer.data_ptr() + first * size for buffer, size in zip(buffers, slot_bytes, strict=True)]
            assert [value.data_ptr() for value in outputs] == wanted


def test_bindings_are_made_once(vlm: Pipeline) -> None:
    caches: Any = vlm._backend.new_caches(2)
    rows = prefill(vlm, caches, 1, seed=0)[1:]
    made = []
    for step in range(3):
        vlm._backend.decode(caches, step_feeds([0, 5], *([0, row + step] for row in rows)))
        made.append({name: dict(part.bindings) for name, part in caches.parts.items()})
    assert made[0] == made[1] == made[2]
    # A prompt's own binding would keep the hidden states of all its rows for as long as the caches live.
    assert all(bindings.keys() == {(0, 2)} for bindings in made[0].values())


@pytest.mark.parametrize("slot", [-1, 2])
def test_slots_that_are_not_there(vlm: Pipeline, slot: int) -> None:
    """An address beyond a buffer would be written to."""
    with pytest.raises(IndexError, match="no slots"):
        prefill(vlm, vlm._backend.new_caches(2), slot, seed=0)


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
        vlm._backend.run("vision_encoder", {"pixel_values": np.zeros((1, 3, 5, 5), np.float32)})
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
    caches: Any = vlm._backend.new_caches(batch)
    for name, part in (("lower", FIRST), ("upper", LAST)):
        allocated = sum(buffer.numpy().nbytes for buffer in caches.parts[part].buffers.values())
        assert caches.bytes_of(part) == allocated == batch * wanted[name]
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
