"""Random bundles whose graphs are lowered, and how they are run on ONNX Runtime, before and after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from sts_export.bundle.manifest import Bundle
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.graphs.contracts import NEWLINE_ROW, VISUAL_ROW
from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig
from sts_export.media.qwen_windows import encoder_indices
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)

Array = NDArray[Any]
TEXT, NEW, KEEP = 48, 16, (12, 5)
OLD, NEW_VERSION = (10, 3), (10, 15)

# Among them: grouped-query attention and none, one and several decoder layers on either side, both scoring layers, all three
# anchors, newline rows, M-RoPE, window attention, and every activation of the families.
VARIANTS: dict[str, tuple[RandomLlava | RandomLlavaNext | RandomQwen25VL, dict[str, Any]]] = {
    "llava": (RandomLlava(vision_width=64), {"score_layer": "own", "anchor": "mean"}),
    "llava_ungrouped": (
        RandomLlava(seed=1, vision_width=64, kv_heads=4, layers=3, tied_embeddings=True, attention_bias=True, mlp_bias=True),
        {"score_layer": "next", "anchor": "saliency", "positions": "keep"},
    ),
    "llava_next": (
        RandomLlavaNext(seed=1, decoder="mistral", vision_width=64, layers=3, kv_heads=1),
        {"score_layer": "next", "anchor": "first"},
    ),
    "qwen2_5_vl": (RandomQwen25VL(vision_width=64, vision_heads=4), {"anchor": "first"}),
}
FAMILIES = ("llava", "llava_next", "qwen2_5_vl")
_BUNDLES: dict[tuple[str, str], Bundle] = {}


def bundle_of(name: str, dtype: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Made once; no test may change it, but files may be put beside its own."""
    if (name, dtype) not in _BUNDLES:
        spec, choices = VARIANTS[name]
        folder = tmp_path_factory.mktemp(f"{name}-{dtype}")
        write: Any = {
            RandomLlava: write_random_llava,
            RandomLlavaNext: write_random_llava_next,
            RandomQwen25VL: write_random_qwen2_5_vl,
        }[type(spec)]
        checkpoint = write(folder / "checkpoint", spec)
        _BUNDLES[name, dtype] = export(
            ExportRequest(
                str(checkpoint),
                output=folder / "bundle",
                keep=KEEP,
                choices=choices,
                dtype=dtype,
                max_prompt_tokens=TEXT,
                max_new_tokens=NEW,
            )
        )
    return _BUNDLES[name, dtype]


def read(bundle: Bundle, name: str) -> bytes:
    return bundle.graph_file(name).read_bytes()


def session(bundle: Bundle, graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.weights_folder))
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run(graph: ort.InferenceSession, feeds: dict[str, Array]) -> dict[str, Array]:
    """Inputs may hold more than the graph takes."""
    names = [item.name for item in graph.get_outputs()]
    return dict(zip(names, graph.run(names, {item.name: feeds[item.name] for item in graph.get_inputs()}), strict=True))


def assert_same(found: Array, wanted: Array, tolerance: float, name: str = "") -> None:
    """Integers are equal; numbers agree up to ``tolerance``, relative to themselves and to the largest."""
    assert found.dtype == wanted.dtype and found.shape == wanted.shape, name
    if found.dtype.kind in "ib":
        np.testing.assert_array_equal(found, wanted, err_msg=name)
    else:
        limit = tolerance * float(np.abs(wanted.astype(np.float64)).max())
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=limit, err_msg=name)


def encoder_feeds(bundle: Bundle, rng: np.random.Generator) -> Iterator[dict[str, Array]]:
    """Images of several sizes."""
    vision, number = bundle.manifest.model.vision, np.dtype(bundle.manifest.dtype)
    if isinstance(vision, QwenVisionConfig):
        for height, width in ((16, 12), (8, 8), (6, 22)):
            indices = encoder_indices(height, width, merge=vision.merge_size, window_patches=vision.window_patches)
            pixels = rng.standard_normal((height * width, vision.patch_values)).astype(number)
            yield {"pixel_values": pixels, **vars(indices)}
    else:
        assert isinstance(vision, ClipVisionConfig)
        most = bundle.manifest.model.max_image_tokens // vision.num_patches
        for crops in sorted({1, most}):
            shape = (crops, vision.num_channels, vision.image_size, vision.image_size)
            yield {"pixel_values": rng.standard_normal(shape).astype(number)}


def selector_feeds(features: dict[str, Array], rng: np.random.Generator) -> Iterator[dict[str, Array]]:
    """All rows in order, and some rows (no padding around the picture) in another; shares of K that differ by crop."""
    crops, rows = features["visual_features"].shape[:2]
    everything = np.arange(crops * rows)
    some = rng.permutation(everything)[: crops * rows - 3]
    for order, steps in ((everything, 5), (some, 4), (everything, 1)):
        quota = np.arange(steps) < np.minimum(steps, steps - np.arange(crops) % 2)[:, None]
        quota[0] = True
        yield {**features, "token_order": order, "quota": quota}


def empty_caches(bundle: Bundle, batch: int, rng: np.random.Generator) -> dict[str, Array]:
    """Rows that were not written yet hold anything."""
    number = np.dtype(bundle.manifest.dtype)
    return {
        before: (rng.standard_normal((batch, *(int(n) for n in contract.input(before).shape[1:]))) * 9).astype(number)
        for contract in (bundle.manifest.graphs["llm_lower"], bundle.manifest.graphs["llm_upper"])
        for before, _ in contract.caches
    }


def prompt_feeds(bundle: Bundle, rng: np.random.Generator, lengths: tuple[int, ...], *, with_image: bool) -> dict[str, Array]:
    """Requests of these lengths with an image each (K visual rows) or with none, padded on the right."""
    decoder, longest, batch = bundle.manifest.model.decoder, max(lengths), len(lengths)
    visual, keep = KEEP if with_image else (1, 1)
    ids = rng.integers(0, decoder.vocab_size, (batch, longest))
    if with_image:
        for index, length in enumerate(lengths):
            places = rng.permutation(np.arange(1, length - 1))
            ids[index, places[:visual]] = VISUAL_ROW
            if bundle.manifest.model.family == "llava_next":
                ids[index, places[visual : visual + 2]] = NEWLINE_ROW
    positions = np.broadcast_to(np.arange(longest), (batch, longest))
    if decoder.mrope_section:
        positions = np.sort(rng.integers(0, 40, (batch, 3, longest)), axis=-1)
    return {
        "input_ids": ids,
        "attention_mask": (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64),
        "visual_embeds": rng.standard_normal((batch, visual, decoder.hidden_size)).astype(bundle.manifest.dtype),
        "stage2_slots": np.zeros(keep, np.int64),
        "position_ids": positions,
        "write_index": np.zeros(batch, np.int64),
    }


def token_feeds(bundle: Bundle, rng: np.random.Generator, write_index: Array, position: int) -> dict[str, Array]:
    """One decode step."""
    decoder, batch = bundle.manifest.model.decoder, len(write_index)
    axes = (3,) if decoder.mrope_section else ()
    return {
        "input_ids": rng.integers(0, decoder.vocab_size, (batch, 1)),
        "attention_mask": np.ones((batch, 1), np.int64),
        "visual_embeds": np.zeros((batch, 1, decoder.hidden_size), bundle.manifest.dtype),
        "stage2_slots": np.zeros(1, np.int64),
        "position_ids": np.full((batch, *axes, 1), position),
        "write_index": write_index,
    }


def all_nodes(nodes: Any) -> Iterator[onnx.NodeProto]:
    """Nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g.node)
