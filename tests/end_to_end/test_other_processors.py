"""Processors that round float32 ``pow`` the other way: nothing but the last bits of the logits may depend on it.

Every rotary frequency of every graph is moved by one unit in its last place, up or down.  Answers and kept sets must still be
those of transformers and of the PyTorch reference, to the index.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sts_export.graphs.decoder import layer
from sts_export.graphs.rotary import inverse_frequencies
from sts_export.graphs.towers import qwen2_5_vl
from sts_export.reference import generate
from sts_export.testing.checkpoints import RandomLlava, RandomLlavaNext, RandomQwen25VL, random_prompt
from tests.support.parity import TOLERANCE, Case, Messages, Spec, Transformers, Workshop, pictures, relative_error

torch.set_num_threads(1)
TOKENS = 24
SPECS: dict[str, Spec] = {
    "llava": RandomLlava(seed=20, kv_heads=4),
    "next": RandomLlavaNext(seed=22, decoder="vicuna", kv_heads=4),
    "qwen": RandomQwen25VL(seed=25, max_pixels=120 * 784),
}
SIZES = [[(84, 84)], [(300, 40)], [(640, 480), (200, 150)]]
ROOM = (("max_new_tokens", TOKENS + 2), ("max_prompt_tokens", 220), ("max_visual_tokens", 700), ("prune_layer", 2))


def up(frequencies: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.nextafter(frequencies, np.float32(np.inf))


def down(frequencies: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.nextafter(frequencies, np.float32(0))


def one_percent(frequencies: NDArray[np.float32]) -> NDArray[np.float32]:
    return frequencies * np.float32(1.01)


def shop_with(monkeypatch: pytest.MonkeyPatch, folder: Path, change: Callable[..., NDArray[np.float32]]) -> Workshop:
    """A workshop whose exports have changed frequencies."""

    def changed(width: int, theta: float, factor: float = 1.0) -> NDArray[np.float32]:
        right = inverse_frequencies(width, theta, factor)
        wrong = change(right)
        assert (wrong != right).all()
        return wrong

    for module in (layer, qwen2_5_vl):
        monkeypatch.setattr(module, "inverse_frequencies", changed)
    return Workshop(folder)


def messages(images: int, seed: int) -> Messages:
    text = {"type": "text", "text": random_prompt(seed)}
    return [{"role": "user", "content": [*({"type": "image"} for _ in range(images)), text]}]


def case(name: str, label: str, **request: Any) -> Case:
    return Case(f"{name}-{label}", SPECS[name], (*ROOM, *request.items()))


@pytest.mark.parametrize("change", [up, down])
@pytest.mark.parametrize("name", SPECS)
def test_the_last_bit_of_a_frequency_changes_no_answer(
    name: str, change: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shop = shop_with(monkeypatch, tmp_path, change)
    whole, pruned = shop.pipeline(case(name, "unpruned", budget="100%")), shop.pipeline(case(name, "pruned", budget="20%"))
    theirs, reference = Transformers(shop.checkpoint(SPECS[name]), SPECS[name]), shop.reference(SPECS[name])
    for seed, sizes in enumerate(SIZES):
        prompt, images = messages(len(sizes), seed), pictures(seed, sizes)
        expected, logits = theirs.generate(prompt, images, TOKENS)
        assert whole.generate(prompt, images, max_new_tokens=TOKENS, ignore_eos=True).token_ids == expected
        assert relative_error(whole.score(prompt, images, expected), logits) < TOLERANCE
        ours = pruned.generate(prompt, images, max_new_tokens=TOKENS, ignore_eos=True)
        wanted = generate(reference, prompt, images, pruned.manifest.pruning, TOKENS, ignore_eos=True)
        assert (ours.kept_stage1, ours.kept_stage2) == (wanted.kept_stage1, wanted.kept_stage2)
        assert ours.token_ids == wanted.token_ids


@pytest.mark.parametrize("name", SPECS)
def test_a_wrong_frequency_is_seen(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The check above has something to see."""
    shop = shop_with(monkeypatch, tmp_path, one_percent)
    vlm = shop.pipeline(case(name, "unpruned", budget="100%"))
    theirs = Transformers(shop.checkpoint(SPECS[name]), SPECS[name])
    prompt, images = messages(1, 0), pictures(0, SIZES[0])
    expected, logits = theirs.generate(prompt, images, TOKENS)
    assert relative_error(vlm.score(prompt, images, expected), logits) > TOLERANCE
