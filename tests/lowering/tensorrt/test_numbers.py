"""Lowered graphs on ONNX Runtime give what the bundle's own graphs give: images of several sizes, prefill, decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from sts_export.bundle.manifest import Bundle
from sts_export.lowering.tensorrt import lower
from sts_export.pruning.stage1.repulsion import repulsion_select
from sts_export.pruning.stage2.last_token import last_token_topk
from tests.support.bundles import GRAPHS
from tests.support.lowered_graphs import (
    FAMILIES,
    OLD,
    VARIANTS,
    Array,
    assert_same,
    bundle_of,
    empty_caches,
    encoder_feeds,
    prompt_feeds,
    read,
    run,
    selector_feeds,
    session,
    token_feeds,
)

# float16: 10 bits of mantissa, and a handful of layers.
TOLERANCE = {"float32": 1e-5, "float16": 2e-2}
BUNDLES = [*((name, "float32") for name in VARIANTS), *((name, "float16") for name in FAMILIES)]
Sessions = dict[str, ort.InferenceSession]


@pytest.fixture(scope="module", params=BUNDLES, ids="-".join)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    name, dtype = request.param
    return bundle_of(name, dtype, tmp_path_factory)


@pytest.fixture(scope="module")
def own(bundle: Bundle) -> Sessions:
    return {name: session(bundle, read(bundle, name)) for name in GRAPHS}


@pytest.fixture(scope="module")
def lowered(bundle: Bundle) -> Sessions:
    return {name: session(bundle, lower(read(bundle, name), OLD, plugins=False).graph) for name in GRAPHS}


def check(bundle: Bundle, found: dict[str, Array], wanted: dict[str, Array]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_same(found[name], value, TOLERANCE[bundle.manifest.dtype], name)


def test_images(bundle: Bundle, own: Sessions, lowered: Sessions) -> None:
    rng = np.random.default_rng(0)
    for feeds in encoder_feeds(bundle, rng):
        features = run(own["vision_encoder"], feeds)
        check(bundle, run(lowered["vision_encoder"], feeds), features)
        for inputs in selector_feeds(features, rng):
            check(bundle, run(lowered["selector"], inputs), run(own["selector"], inputs))


class Decoder:
    """Both halves with caches of their own."""

    def __init__(self, sessions: Sessions, caches: dict[str, Array]) -> None:
        self.sessions, self.caches = sessions, dict(caches)

    def __call__(self, feeds: dict[str, Array], upper_index: Array) -> dict[str, Array]:
        """All outputs of both halves, caches included."""
        lower_outputs = self._run("llm_lower", feeds)
        middle = {"position_ids": lower_outputs["kept_position_ids"], "write_index": upper_index}
        return lower_outputs | self._run("llm_upper", lower_outputs | middle)

    def _run(self, name: str, feeds: dict[str, Array]) -> dict[str, Array]:
        outputs = run(self.sessions[name], feeds | self.caches)
        updated = {key.replace("_out", ""): value for key, value in outputs.items() if "_cache_out" in key}
        assert updated
        self.caches |= updated
        return outputs


def converse(bundle: Bundle, sessions: Sessions, check_step: Callable[[dict[str, Array]], None]) -> None:
    """Two requests of different lengths: a prompt with images, three tokens, a second prompt of text, a token more."""
    rng = np.random.default_rng(4)
    lengths = np.array([26, 21])
    decoder = Decoder(sessions, empty_caches(bundle, 2, rng))
    dropped = 12 - 5
    check_step(decoder(prompt_feeds(bundle, rng, (26, 21), with_image=True), np.zeros(2, np.int64)))
    for step in range(3):
        feeds = token_feeds(bundle, rng, lengths + step, 40 + step)
        check_step(decoder(feeds, lengths - dropped + step))
    lengths += 3
    again = prompt_feeds(bundle, rng, (4, 7), with_image=False) | {"write_index": lengths}
    check_step(decoder(again, lengths - dropped))
    lengths += np.array([4, 7])
    check_step(decoder(token_feeds(bundle, rng, lengths, 45), lengths - dropped))


def test_prompts_and_tokens(bundle: Bundle, own: Sessions, lowered: Sessions) -> None:
    """Outputs of every call, and all rows of the caches: those written, those written before, those never written."""
    steps: list[dict[str, Array]] = []
    converse(bundle, own, steps.append)
    wanted = iter(steps)
    converse(bundle, lowered, lambda outputs: check(bundle, outputs, next(wanted)))
    assert next(wanted, None) is None and len(steps) == 6
    assert steps[0]["kept_rows"].shape == (2, 26 - 12 + 5) and steps[1]["logits"].shape[0] == 2


def test_columns_beyond_the_capacity_drop_out(bundle: Bundle, lowered: Sessions) -> None:
    """As in TensorRT's own cache update; the write index decides nothing else about keys and values."""
    rng = np.random.default_rng(5)
    feeds = prompt_feeds(bundle, rng, (26,), with_image=True)
    caches = empty_caches(bundle, 1, rng)
    capacity = bundle.manifest.capacities.rows[0]
    first = min(int(name.split(".")[1]) for name in caches)  # the keys of later layers depend on what was written
    written = run(lowered["llm_lower"], feeds | caches)[f"key_cache_out.{first}"]
    end = capacity - 4
    late = run(lowered["llm_lower"], feeds | caches | {"write_index": np.array([end])})[f"key_cache_out.{first}"]
    np.testing.assert_array_equal(late[:, :, :end], caches[f"key_cache.{first}"][:, :, :end])
    np.testing.assert_array_equal(late[:, :, end:], written[:, :, :4])


@pytest.mark.parametrize("version", [OLD, (10, 15), (11, 0)])
@pytest.mark.parametrize("name", VARIANTS)
def test_plugin_nodes_stand_for_the_functions(
    name: str, version: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With the bodies of the stages put back, the graphs compute what they did."""
    bundle = bundle_of(name, "float32", tmp_path_factory)
    own, again = {}, {}
    for part in GRAPHS:
        own[part] = session(bundle, read(bundle, part))
        model = onnx.load_model_from_string(lower(read(bundle, part), version, plugins=True).graph)
        again[part] = session(bundle, _with_bodies(model).SerializeToString())
    test_images(bundle, own, again)
    test_prompts_and_tokens(bundle, own, again)


def _with_bodies(model: onnx.ModelProto) -> onnx.ModelProto:
    """Plugin nodes become calls again: of functions of the model's opset, whose declared attributes do not name a plugin."""
    opset = next(item.version for item in model.opset_import if not item.domain)
    bodies: dict[str, Any] = {"RepulsionSelect": repulsion_select, "LastTokenTopK": last_token_topk}
    for node in model.graph.node:
        if node.domain == "sts":
            function = ir.serde.serialize_function(bodies[node.op_type]())
            function.opset_import[0].version = opset
            model.functions.append(function)
            kept = [item for item in node.attribute if not item.name.startswith("plugin_")]
            del node.attribute[:]
            node.attribute.extend(kept)
    return model
