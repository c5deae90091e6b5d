"""The benchmark of selection times: what it runs and subtracts, not how long that takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.selection.graphs import encoder_graph, first_rows, selector_graph, stage2_graph
from benchmarks.selection.measure import Added, added, differences, shares
from benchmarks.selection.shapes import SHAPES, Shape
from benchmarks.selection.table import put, rows
from sts_export.families.spec import ModelSpec
from sts_export.graphs.configs import DecoderConfig, ProjectorConfig
from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.pruning.choosing import config_for_budget, config_for_counts
from sts_export.pruning.config import PruningConfig
from sts_export.pruning.methods import METHODS
from sts_export.pruning.stage1.keep_all import KeepAll
from sts_export.pruning.stage2.last_token import LastToken

TOKENS, LAYERS = 36, 6
SHAPE = Shape(tokens=TOKENS, crops=1, budget=8, side=84, write=lambda folder: None)


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    vision = ClipVisionConfig(
        image_size=84,
        patch_size=14,
        num_channels=3,
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        feature_layers=3,
        activation="quick_gelu",
        layer_norm_eps=1e-5,
    )
    decoder = DecoderConfig(
        hidden_size=48,
        intermediate_size=64,
        num_layers=LAYERS,
        num_heads=4,
        num_kv_heads=2,
        head_dim=12,
        vocab_size=100,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
    )
    return ModelSpec("llava", vision, ProjectorConfig(32, 48, "gelu"), decoder, 99, "<image>", 512, TOKENS, "")


def pruning_of(method: str) -> PruningConfig:
    """As the benchmark asks for it."""
    pair = next(each for each in METHODS if each.name == method)
    if pair.stage1 == "keep-all":
        keep = (TOKENS, TOKENS if pair.stage2 == "keep-all" else SHAPE.budget)
        return config_for_counts(TOKENS, LAYERS, None, *keep, method=method)
    return config_for_budget(str(SHAPE.budget), num_visual_tokens=TOKENS, num_layers=LAYERS, method=method)


def test_every_method_is_measured_with_what_it_adds(spec: ModelSpec) -> None:
    pruning = {method.name: pruning_of(method.name) for method in METHODS}
    found = added(spec, SHAPE, pruning, repeats=2, threads=1)
    assert list(found) == [method.name for method in METHODS]
    for method in METHODS:
        parts = {name for name, values in vars(found[method.name]).items() if values}
        config = pruning[method.name]
        assert ("tower" in parts) == bool(config.tower_needs)
        assert ("selection" in parts) == (method.stage1 != "keep-all")
        assert ("projecting" in parts) == (method.name in ("divprune", "cdpruner"))
        assert ("inside" in parts) == (method.stage2 != "keep-all")
        assert all(len(values) == 2 for values in vars(found[method.name]).values() if values)


def test_the_plain_selector_keeps_the_first_rows(spec: ModelSpec) -> None:
    graph = selector_graph(spec, KeepAll(), 1, build=first_rows)
    given = {"token_order": np.arange(TOKENS), "quota": np.ones((1, 5), np.bool_)}
    feeds = graph.random_feeds({"crops": 1, "tokens": TOKENS, "steps": 5}, given)
    assert graph.session.run(["kept_index"], feeds)[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("score_layer", ["own", "next"])
def test_a_stage_inside_alone_keeps_text_and_as_many_rows_as_it_should(spec: ModelSpec, score_layer: str) -> None:
    graph = stage2_graph(spec, LastToken(score_layer=score_layer), 10, 1)  # type: ignore[arg-type]
    visual = np.isin(np.arange(10), [2, 3, 4, 5, 6])[None]
    given = {
        "attention_mask": np.ones((1, 10), np.int64),
        "visual_mask": visual,
        "text_rows": ~visual,
        "stage2_slots": np.zeros(2, np.int64),
        "seed": np.zeros(1, np.int64),
        "position_ids": np.arange(10)[None],
        "write_index": np.zeros(1, np.int64),
    }
    feeds = graph.random_feeds({"batch": 1, "rows": 10, "visual": 5, "visual_keep": 2}, given)
    kept, last = graph.session.run(None, feeds)
    assert last.tolist() == [6] and kept.shape == (1, 7)
    assert {0, 1, 7, 8, 9} < set(kept[0].tolist())


def test_the_tower_gives_what_is_asked_for(spec: ModelSpec) -> None:
    graph = encoder_graph(spec, frozenset({"cls_attention"}), 1)
    feeds = graph.random_feeds({"crops": 1}, {})
    features, attention = graph.session.run(None, feeds)
    assert features.shape == (1, TOKENS, 32) and attention.shape == (1, TOKENS)


def test_differences_are_of_one_turn() -> None:
    calls: list[str] = []

    def counted(name: str) -> Callable[[], None]:
        return lambda: calls.append(name)

    found = differences({"a": counted("a"), "b": counted("b")}, {"b": ("b", "a"), "a": ("a", "a")}, 3)
    assert found["a"] == [0.0, 0.0, 0.0] and len(found["b"]) == 3
    turns = "".join(calls).strip("a")  # warm-ups of the first come first
    assert turns.count("ab") >= 2  # a run that takes no time is repeated within its turn


def test_noise_below_nothing_is_nothing_and_projecting_is_no_choice() -> None:
    parts = Added(tower=[-3.0, -1.0, 2.0], selection=[4.0, 1.0, 2.0], projecting=[10.0]).medians()
    assert parts == {"tower": 0.0, "selection": 2.0, "projecting": 10.0}
    assert shares(parts, [50.0, 100.0, 90.0]) == pytest.approx(
        {"tower": 0.0, "selection": 2 / 90, "projecting": 1 / 9, "choosing": 2 / 90}
    )


def test_the_picture_has_as_many_tokens_as_the_shape_says() -> None:
    """A square of so many pixels: crops of 24 x 24 tokens, of them one is the whole picture."""
    for shape in SHAPES:
        tiles = (shape.side // 336) ** 2
        assert shape.picture().size == (shape.side, shape.side)
        assert shape.crops == (1 if tiles == 1 else 1 + tiles) and shape.tokens == 576 * shape.crops
    assert replace(SHAPE, tokens=72, crops=2).crop_tokens == 36


def test_a_method_is_a_row() -> None:
    method = {"ms": {"selection": 1.26, "inside": 0.5}, "shares": {"choosing": 0.0123}}
    shape = {"tokens": 7, "methods": {"m": method, "n": {"ms": {}, "shares": {"choosing": 0.0}}}}
    found = rows(json.loads(json.dumps({"shapes": [shape, {**shape, "tokens": 9}]})))
    assert found[2] == "| `m` |  | 1.3 |  | 0.5 | 1.2% |  | 1.3 |  | 0.5 | 1.2% |"
    assert found[3].startswith("| `n` |  |  |  |  | 0.0% |")
    assert len({line.count("|") for line in found}) == 1


def test_the_table_of_a_page_is_replaced_and_nothing_else() -> None:
    page = "a\n\n| method | N = 1 |\n|---|\n| `old` |\n\nb\n| other |\n"
    assert put(page, ["| x |", "| y |"]) == "a\n\n| x |\n| y |\n\nb\n| other |\n"
    with pytest.raises(ValueError):
        put("nothing\n", ["| x |"])
