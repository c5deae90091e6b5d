"""What stage 1 sees is what transformers' own tower computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import eager_attention_forward

from sts_export.reference import ReferenceModel
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_image,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)

torch.set_num_threads(1)
OF_CLIP = {
    "cls_attention",
    "early_cls_attention",
    "received_attention",
    "early_received_attention",
    "middle_received_attention",
    "mean_keys",
    "cls_features",
}


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    spec = RandomLlava(seed=3, attention_bias=True, vision_layers=11)
    return ReferenceModel.open(write_random_llava(tmp_path_factory.mktemp("stages"), spec), attention="eager")


# Of 11 layers; the last column is n, its quarter and three eighths, halves rounded up.
@pytest.mark.parametrize(
    "feature_layer, layers", [(-1, (11, 3, 4)), (-2, (10, 3, 4)), (-6, (6, 2, 2)), (4, (4, 1, 2)), (1, (1, 1, 1))]
)
def test_clip_gives_what_its_layers_attend_to(eager: ReferenceModel, feature_layer: int, layers: tuple[int, int, int]) -> None:
    config = eager.model.config
    before = config.vision_feature_layer
    image = eager.prepare("x", [random_image(2)]).images[0]
    try:
        config.vision_feature_layer = feature_layer
        seen = eager.vision(image, eager.gives)
    finally:
        config.vision_feature_layer = before
    keys: list[Tensor] = []
    tower: Any = eager.model.model.vision_tower
    hooks = [layer.self_attn.k_proj.register_forward_hook(lambda *seen: keys.append(seen[2])) for layer in tower.encoder.layers]
    out = tower(image.pixel_values, output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(seen.features, out.hidden_states[feature_layer][0, 1:])
    attentions = [attention[0].mean(dim=0) for attention in out.attentions]
    last, early, middle = layers
    assert eager.gives == OF_CLIP and seen.tower.keys() == OF_CLIP - {"cls_features"}
    expected = {
        "cls_attention": attentions[last - 1][0, 1:],
        "early_cls_attention": attentions[early - 1][0, 1:],
        "received_attention": attentions[last - 1][1:, 1:].mean(dim=0),
        "early_received_attention": attentions[early - 1][1:, 1:].mean(dim=0),
        "middle_received_attention": attentions[middle - 1][1:, 1:].mean(dim=0),
        "mean_keys": keys[last - 1][0, 1:].view(36, 4, 8).mean(dim=1),
    }
    for name, values in expected.items():
        torch.testing.assert_close(seen.tower[name], values, msg=name)
    assert seen.cls is not None
    torch.testing.assert_close(seen.cls, out.hidden_states[feature_layer][:, 0])
    assert eager.vision(image).tower == {} and eager.vision(image).cls is None


def test_every_crop_attends_to_itself(tmp_path: Any) -> None:
    """Of LLaVA-NeXT's tokens each is found where its place says, in its crop alone."""
    model = ReferenceModel.open(write_random_llava_next(tmp_path, RandomLlavaNext(seed=2)), attention="eager")
    image = model.prepare("x", [random_image(2, (300, 40))]).images[0]
    seen = model.vision(image, model.gives)
    tower: Any = model.model.model.vision_tower
    out = tower(image.pixel_values, output_attentions=True, output_hidden_states=True)
    patches = image.places[:, 0] * 6 + image.places[:, 1]
    assert image.grid == (6, 6) and len(set(zip(image.crops.tolist(), patches.tolist(), strict=True))) == len(patches)
    torch.testing.assert_close(seen.features, out.hidden_states[-2][image.crops, 1 + patches])
    attention = out.attentions[1].mean(dim=1)
    torch.testing.assert_close(seen.tower["received_attention"], attention[:, 1:, 1:].mean(dim=1)[image.crops, patches])
    torch.testing.assert_close(seen.tower["cls_attention"], attention[image.crops, 0, 1 + patches])
    assert seen.tower["mean_keys"].shape == (len(patches), 8)
    assert seen.cls is not None and len(seen.cls) == len(image.pixel_values)
    torch.testing.assert_close(seen.cls, out.hidden_states[-2][:, 0])


@pytest.mark.parametrize(
    "full, layers", [((1, 3, 4), (5, 2, 2)), ((0, 2, 3), (4, 1, 3)), ((3,), (4, 4, 4)), ((4, 0), (5, 1, 1))]
)
def test_qwen_gives_what_its_full_layers_attend_to(full: tuple[int, ...], layers: tuple[int, int, int], tmp_path: Any) -> None:
    """Of five layers, those with full attention counted from 0; last, early and middle (nearest to 2.5) counted from 1."""
    spec = RandomQwen25VL(seed=4, vision_layers=5, fullatt_block_indexes=full)
    model = ReferenceModel.open(write_random_qwen2_5_vl(tmp_path, spec))
    image = model.prepare("x", [random_image(2, (640, 480))]).images[0]
    seen = model.vision(image, model.gives)

    weights: dict[Any, list[Tensor]] = {}

    def recorded(module: Any, *tensors: Tensor, **settings: Any) -> Any:
        out, probabilities = eager_attention_forward(module, *tensors, **settings)
        weights.setdefault(module, []).append(probabilities)
        return out, probabilities

    AttentionInterface.register("recorded", recorded)
    tower: Any = model.model.model.visual
    tower.config._attn_implementation = "recorded"
    projected: dict[Any, Tensor] = {}
    hooks = [
        block.attn.qkv.register_forward_hook(lambda module, given, out: projected.update({module: out}))
        for block in tower.blocks
    ]
    out = tower(image.pixel_values, grid_thw=torch.tensor([image.size]))
    for hook in hooks:
        hook.remove()
    # The tower's order: its rows, merged as they lie, are the tokens window by window.
    order = torch.cdist(tower.merger(out.last_hidden_state), out.pooler_output).argmin(dim=1)
    assert sorted(order.tolist()) == list(range(70)) != order.tolist()

    def of_tokens(patches: Tensor) -> Tensor:
        tokens = patches.view(70, 4, -1).mean(dim=1)
        return torch.stack([tokens[order.tolist().index(token)] for token in range(70)])

    last, early, middle = layers
    assert model.gives == seen.tower.keys()
    for prefix, number in {"": last, "early_": early, "middle_": middle}.items():
        name = f"{prefix}received_attention"
        (attention,) = weights[tower.blocks[number - 1].attn]
        assert attention.shape == (1, 2, 280, 280)
        torch.testing.assert_close(seen.tower[name], of_tokens(attention[0].mean(dim=(0, 1)))[:, 0], msg=name)
    keys = projected[tower.blocks[last - 1].attn.qkv][:, 32:64].view(280, 2, 16).mean(dim=1)
    torch.testing.assert_close(seen.tower["mean_keys"], of_tokens(keys))
    torch.testing.assert_close(seen.features, out.pooler_output)
    assert image.grid == (7, 10) and image.places.tolist()[10:12] == [[1, 0], [1, 1]]


def test_qwen_without_full_layers_gives_nothing(tmp_path: Any) -> None:
    spec = RandomQwen25VL(vision_layers=2, fullatt_block_indexes=())
    assert ReferenceModel.open(write_random_qwen2_5_vl(tmp_path, spec)).gives == frozenset()
