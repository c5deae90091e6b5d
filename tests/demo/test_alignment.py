"""The loss that draws patches to words, against a loop over patches."""

from __future__ import annotations

import math

import numpy as np
import torch

from scripts.demo_training.alignment import SHARPNESS, alignment_loss
from scripts.demo_training.labels import PATCH, patch_geometry, patch_labels
from scripts.demo_training.model import VISION_WIDTH, build_model, train_tokenizer
from sts_export.demo.drawing import draw
from sts_export.demo.world import COLORS, IMAGE_SIZE, SHAPES, sample_scene


@torch.no_grad()
def test_every_patch_near_a_thing_has_four_words() -> None:
    tokenizer = train_tokenizer()
    model = build_model(tokenizer, seed=1)
    scene = sample_scene(6)
    owner = draw(scene).owner
    labels = torch.from_numpy(patch_labels(scene, owner).astype(np.int64))[None]
    geometry = torch.from_numpy(patch_geometry(scene, owner).astype(np.float32))[None]
    features = torch.randn(1, labels.shape[1], VISION_WIDTH, generator=torch.Generator().manual_seed(0))
    table = model.model.language_model.embed_tokens.weight

    def loss_of(projected: torch.Tensor, words: tuple[str, ...], word: str) -> float:
        scores = []
        for each in words:
            (token,) = tokenizer(f" {each}", add_special_tokens=False)["input_ids"]
            scores.append(SHARPNESS * torch.cosine_similarity(projected, table[token], dim=0).item())
        return math.log(sum(math.exp(score) for score in scores)) - scores[words.index(word)]

    sums = [0.0] * 4
    near = torch.nonzero(labels[0, :, 0]).flatten().tolist()
    for patch in near:
        shape, color = SHAPES[labels[0, patch, 0] - 1], list(COLORS)[labels[0, patch, 1] - 1]
        place = (patch // 24 + 0.5) * PATCH, (patch % 24 + 0.5) * PATCH
        alike = [o for o in scene.objects if (o.shape, o.color) == (shape, color)]
        item = min(alike, key=lambda o: math.hypot(o.y - place[0], o.x - place[1]))
        projected = model.model.multi_modal_projector(features[0, patch])
        vertical = "top" if item.y < IMAGE_SIZE / 2 else "bottom"
        horizontal = "left" if item.x < IMAGE_SIZE / 2 else "right"
        choices = ((SHAPES, shape), (tuple(COLORS), color), (("top", "bottom"), vertical), (("left", "right"), horizontal))
        for number, (words, word) in enumerate(choices):
            sums[number] += loss_of(projected, words, word)
    expected = sum(sums) / len(near)
    assert abs(alignment_loss(model, tokenizer, features, labels, geometry).item() - expected) < 1e-3 * expected
