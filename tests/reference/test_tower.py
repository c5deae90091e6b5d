"""What stage 1 sees is what transformers' own tower computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sts_export.reference import ReferenceModel
from sts_export.testing.checkpoints import RandomLlava, random_image, write_random_llava

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    folder = write_random_llava(tmp_path_factory.mktemp("stages"), RandomLlava(seed=3, attention_bias=True))
    return ReferenceModel.open(folder, attention="eager")


@pytest.mark.parametrize("feature_layer", [-2, -1, -3, 1])
def test_features_and_saliency_are_those_of_the_vision_tower(eager: ReferenceModel, feature_layer: int) -> None:
    config = eager.model.config
    before = config.vision_feature_layer
    image = eager.prepare("x", [random_image(2)]).images[0]
    try:
        config.vision_feature_layer = feature_layer
        seen = eager.vision(image, eager.gives)
    finally:
        config.vision_feature_layer = before
    tower: Any = eager.model.model.vision_tower(image.pixel_values, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(seen.features, tower.hidden_states[feature_layer][0, 1:])
    layer = {-1: 2, -2: 1, -3: 0, 1: 0}[feature_layer]  # of 3 encoder layers
    assert seen.tower.keys() == eager.gives == {"cls_attention"}
    torch.testing.assert_close(seen.tower["cls_attention"], tower.attentions[layer][0].mean(dim=0)[0, 1:])
