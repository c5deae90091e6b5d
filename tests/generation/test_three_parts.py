"""A decoder that is cut twice, from export to answers: nothing but the list of parts says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sts_export import Pipeline
from sts_export.bundle.description import as_text, describe, summary
from sts_export.bundle.manifest import Bundle, open_bundle, write_manifest
from sts_export.errors import BundleError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.graphs.decoder.parts import DecoderPart, decoder_parts
from sts_export.pruning.config import PruningConfig
from sts_export.tensorrt.memory import estimate
from sts_export.tensorrt.plugins import with_stages
from sts_export.tensorrt.profiles import profiles, shapes
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)
from tests.generation.scheduling import chats
from tests.support.mixed_requests import IMAGES, PROMPTS, WIDE, same

torch.set_num_threads(1)
LAYERS, NEW = 4, 6
CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "llava": lambda folder: write_random_llava(folder, RandomLlava(layers=LAYERS)),
    "llava_next": lambda folder: write_random_llava_next(folder, RandomLlavaNext(layers=LAYERS)),
    "qwen": lambda folder: write_random_qwen2_5_vl(folder, RandomQwen25VL(layers=LAYERS)),
}
ANOTHER_CUT = ("llm_lower", "llm_middle_1", "llm_upper")


def cut_again(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """One layer after the first cut comes another one, which leaves this share of the tokens (and at least one)."""
    keeps = PruningConfig.keeps

    def parts(self: PruningConfig) -> tuple[DecoderPart, ...]:
        return decoder_parts(self.num_layers, (self.prune_layer, self.prune_layer + 1))

    def keeps_of_three(self: PruningConfig, num_visual_tokens: int) -> tuple[int, ...]:
        keep1, keep2 = keeps(self, num_visual_tokens)
        return keep1, keep2, max(1, int(share * keep2))

    monkeypatch.setattr(PruningConfig, "parts", property(parts))
    monkeypatch.setattr(PruningConfig, "keeps", keeps_of_three)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: write(folder / name) for name, write in CHECKPOINTS.items()}


def exported(checkpoint: Path, folder: Path, **choices: Any) -> Bundle:
    room = {"max_visual_tokens": 360, "max_prompt_tokens": 150, "max_new_tokens": NEW}
    request = ExportRequest(str(checkpoint), folder, budget="30%", prune_layer=2, choices=choices, **room)  # type: ignore[arg-type]
    return export(request)


@pytest.mark.parametrize("positions", ["reindex", "keep"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_cut_that_drops_nothing_changes_no_answer(
    name: str, positions: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests one by one and together, with and without pictures."""
    once = Pipeline(exported(checkpoints[name], tmp_path / "once", positions=positions).folder, threads=1)
    expected = list(once.generate(PROMPTS, IMAGES, ignore_eos=True))
    cut_again(monkeypatch, 1.0)
    twice = Pipeline(exported(checkpoints[name], tmp_path / "twice", positions=positions).folder, threads=1)
    assert tuple(twice.manifest.graphs)[2:] == ANOTHER_CUT
    assert twice.manifest.capacities.rows[1:] == (once.manifest.capacities.rows[1],) * 2
    same(list(twice.generate(PROMPTS, IMAGES, ignore_eos=True)), expected)
    same([twice.generate(PROMPTS[0], IMAGES[0], ignore_eos=True)], expected[:1])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_second_cut_leaves_fewer_tokens_and_smaller_caches(
    name: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, bytes and engine sizes of the last part are those of what the second cut leaves."""
    cut_again(monkeypatch, 0.5)
    bundle = open_bundle(exported(checkpoints[name], tmp_path / "twice").folder)
    manifest = bundle.manifest
    rows, decoder = manifest.capacities.rows, manifest.model.decoder
    assert rows[0] > rows[1] > rows[2]
    pipeline = Pipeline(bundle.folder, threads=1)
    together = pipeline.generate([PROMPTS[0], "Why?"], [WIDE, None], ignore_eos=True)
    same([pipeline.generate(PROMPTS[0], WIDE, ignore_eos=True)], together[:1])
    tokens, caches = together[0].visual_tokens, together[0].kv_cache_bytes
    assert (tokens.stage1, tokens.stage2) == (manifest.pruning.keeps(tokens.total)[0], manifest.pruning.keeps(tokens.total)[-1])
    assert len(together[0].kept_stage2) == tokens.stage2 and set(together[0].kept_stage2) <= set(together[0].kept_stage1[0])
    a_row = 2 * decoder.num_kv_heads * decoder.head_dim * 4
    assert (caches.lower, caches.upper) == (2 * rows[0] * a_row, (rows[1] + (LAYERS - 3) * rows[2]) * a_row)
    assert estimate(bundle, 3, fused=True).caches == 3 * (caches.lower + caches.upper)
    assert with_stages(manifest) == ("selector", "llm_lower", "llm_middle_1")
    for part, most in zip(ANOTHER_CUT, rows, strict=True):
        prefill, decode = profiles(manifest, part, 3)
        entering = manifest.graphs[part].inputs[0]
        assert shapes(entering, prefill)[2][:2] == (1, most) and shapes(entering, decode)[2][:2] == (3, 1)
        assert all(shapes(spec, profile) for spec in manifest.graphs[part].inputs for profile in (prefill, decode))
    assert f"KV rows {rows[0]} lower, {rows[1]} middle_1, {rows[2]} upper" in summary(manifest)
    line = f"{rows[0]} in the lower layers, {rows[1]} in the middle_1 ones, {rows[2]} in the upper ones"
    assert f"KV rows   {line}" in as_text(describe(bundle)).splitlines()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_second_turn_goes_on_in_every_part(
    name: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_again(monkeypatch, 0.5)
    pipeline = Pipeline(exported(checkpoints[name], tmp_path / "twice").folder, threads=1)
    first = pipeline.prepare(PROMPTS[0], WIDE, ignore_eos=True)
    (answer,) = chats.alone(pipeline, [first])
    second = chats.turned(first, [*answer.token_ids, 40, 77, 12])
    _, again = chats.alone(pipeline, [first, second])
    assert again.cached_tokens == len(first.input_ids) + NEW - 1
    assert again.token_ids == chats.token_by_token(pipeline, second, len(first.input_ids))[0]
    assert again.kept_stage2 == answer.kept_stage2


def test_a_bundle_with_other_parts_is_damaged(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported(checkpoints["llava"], tmp_path / "once")
    shorter = replace(bundle.manifest.capacities, rows=bundle.manifest.capacities.rows[:1])
    write_manifest(bundle.folder, replace(bundle.manifest, capacities=shorter))
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(bundle.folder)
    write_manifest(bundle.folder, bundle.manifest)
    assert open_bundle(bundle.folder).manifest == bundle.manifest
    cut_again(monkeypatch, 1.0)
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(bundle.folder)
