"""Bundles of adapters hold the weights that peft merges, and answer as transformers does with them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sts_export import Pipeline
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.families import families
from sts_export.testing.checkpoints import RandomLlava, RandomLlavaNext, RandomQwen25VL, random_image
from sts_export.testing.checkpoints.adapters import load_base, merged_by_peft, reconfigure, rewrite, write_random_adapter
from tests.adapters.conftest import Bases
from tests.support.parity import Spec, Transformers, relative_error

DECODER = ["q_proj", "v_proj", "down_proj"]  # and the same modules of a CLIP tower
# id: (base, settings of the adapter)
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": ("llava", {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
    "rank-stabilized": ("llava", {"target_modules": DECODER, "use_rslora": True, "r": 3}),
    "patterns": (
        "llava",
        {
            "target_modules": DECODER,
            "rank_pattern": {"language_model.layers.0.self_attn.q_proj": 2, r"layers\.\d+\.mlp\.down_proj": 5},
            "alpha_pattern": {"q_proj": 3, "^model.language_model.layers.1.mlp.down_proj": 11},
        },
    ),
    "regex": ("llava", {"target_modules": r".*language_model.*\.(up|gate)_proj"}),
    "some-layers": ("llava", {"target_modules": ["o_proj"], "layers_to_transform": [1]}),
    "excluded": ("llava", {"target_modules": DECODER, "exclude_modules": r".*vision_tower.*"}),
    "fan-in-fan-out": ("llava", {"target_modules": ["gate_proj"], "fan_in_fan_out": True}),
    "all-biases": ("llava", {"target_modules": ["q_proj", "linear_1"], "bias": "all"}),
    "biases-of-targets": ("llava", {"target_modules": ["out_proj", "linear_2"], "bias": "lora_only"}),
    "embedding-and-head": ("llava", {"target_modules": ["embed_tokens", "lm_head"]}),
    "whole-modules": ("llava", {"target_modules": ["q_proj"], "modules_to_save": ["multi_modal_projector", "lm_head"]}),
    "vision-tower": ("llava", {"target_modules": ["fc1", "fc2", "out_proj", "patch_embedding", "linear_1"]}),
    "initialized": ("llava", {"target_modules": ["up_proj"], "init_lora_weights": "gaussian"}),
    "sharded": ("sharded", {"target_modules": DECODER}),
    "llava-next": ("llava_next", {"target_modules": [*DECODER, "linear_2", "lm_head"]}),
    "qwen": ("qwen2_5_vl", {"target_modules": ["q_proj", "o_proj", "qkv", "proj", "gate_proj"]}),
    "qwen-merger": ("qwen2_5_vl", {"target_modules": ["k_proj"], "modules_to_save": ["merger", "embed_tokens"]}),
}
SPECS: dict[str, Spec] = {
    "llava": RandomLlava(layers=2, vision_layers=2),
    "llava_next": RandomLlavaNext(layers=2, vision_layers=2),
    "qwen2_5_vl": RandomQwen25VL(layers=2),
}


def bundle_of(model: Path, output: Path, **options: Any) -> Path:
    settings = {"budget": "100%", "max_prompt_tokens": 90, "max_new_tokens": 10, **options}
    return export(ExportRequest(str(model), output, **settings)).folder


def in_graphs(model: Any, family: str) -> dict[str, torch.Tensor]:
    """A transformers model's weights under the names of the graphs."""
    return {families()[family].canonical_name(name): value for name, value in model.state_dict().items()}


def family(base: str) -> str:
    return base if base in families() else "llava"


@pytest.mark.parametrize(("base", "settings"), ADAPTERS.values(), ids=ADAPTERS.keys())
def test_the_bundle_holds_what_peft_merges(bases: Bases, tmp_path: Path, base: str, settings: dict[str, Any]) -> None:
    """To 1e-6 of the largest weight of a matrix; untouched ones exactly."""
    adapter = write_random_adapter(bases.get(base), tmp_path / "adapter", **settings)
    ours = load_file(bundle_of(adapter, tmp_path / "bundle") / "weights.safetensors")
    merged = in_graphs(merged_by_peft(bases.get(base), adapter), family(base))
    plain = in_graphs(load_base(bases.get(base)), family(base))
    changed = 0
    for name, value in ours.items():
        expected = merged[name]
        if torch.equal(expected, plain[name]):
            assert torch.equal(value, expected), name
            continue
        changed += 1
        assert (plain[name] - expected).abs().max() > 1e-2 * expected.abs().max(), name
        assert (value - expected).abs().max() <= 1e-6 * expected.abs().max(), name
    assert changed


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once(bases: Bases, tmp_path: Path, dtype: str, kept: str) -> None:
    """Ours are within half a unit in the last place of the exact sum; peft's, which may round the change before, within two
    of ours.  An adapter is saved in float32, or in a trainer's own type."""
    base, kind = bases.get(dtype), getattr(torch, dtype)
    adapter = write_random_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    rewrite(adapter, lambda t: t.update({name: value.to(getattr(torch, kept)) for name, value in t.items()}))
    ours = load_file(bundle_of(adapter, tmp_path / "bundle") / "weights.safetensors")
    theirs = in_graphs(merged_by_peft(base, adapter, kind), "llava")
    plain = in_graphs(load_base(base, kind), "llava")
    factors = load_file(adapter / "adapter_model.safetensors")
    unit = torch.finfo(kind).eps
    module = "model.language_model.layers.1.self_attn.q_proj"
    adapted = "language_model.model.layers.1.self_attn.q_proj.weight"
    down, up = (factors[f"base_model.model.{module}.lora_{side}.weight"].double() for side in "AB")
    exact = plain[adapted].double() + 6 / 4 * (up @ down)
    assert ours[adapted].dtype == theirs[adapted].dtype == kind
    assert ((ours[adapted].double() - exact).abs() <= unit / 2 * exact.abs() * 1.001 + 1e-7).all()
    for name in (adapted, "language_model.lm_head.weight"):
        assert not torch.equal(ours[name], plain[name])
        change = (theirs[name].double() - plain[name].double()).abs()
        bound = 2 * unit * torch.maximum(theirs[name].double().abs(), change) + 1e-7
        assert ((ours[name].double() - theirs[name].double()).abs() <= bound).all()


def test_float32_of_a_bfloat16_checkpoint_is_merged_in_float32(bases: Bases, tmp_path: Path) -> None:
    base = bases.get("bfloat16")
    adapter = write_random_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    ours = load_file(bundle_of(adapter, tmp_path / "bundle", dtype="float32") / "weights.safetensors")
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    expected = in_graphs(merged_by_peft(base, adapter), "llava")[name]
    assert (ours[name] - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_whole_modules_in_float32_leave_the_models_dtype(bases: Bases, tmp_path: Path) -> None:
    base = bases.get("bfloat16")
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    adapter = write_random_adapter(base, tmp_path / "adapter", **settings)
    held = load_file(adapter / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    ours = load_file(bundle_of(adapter, tmp_path / "bundle") / "weights.safetensors")
    assert {value.dtype for value in ours.values()} == {torch.bfloat16}
    assert torch.equal(ours["language_model.lm_head.weight"], held.to(torch.bfloat16))


OLD_NAMES = {
    "llava": [
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ],
    "qwen2_5_vl": [("model.language_model.", "model."), ("model.visual.", "visual."), ("lm_head.", "lm_head.")],
}


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
@pytest.mark.parametrize("base", OLD_NAMES)
def test_names_of_older_releases(bases: Bases, tmp_path: Path, base: str, prefix: str) -> None:
    """What transformers before 4.52 called the modules; without prefix, as transformers' load_adapter takes them, too."""
    targets = ["q_proj", "lm_head", "linear_1", "qkv"]
    adapter = write_random_adapter(bases.get(base), tmp_path / "adapter", target_modules=targets)
    merged = in_graphs(merged_by_peft(bases.get(base), adapter), base)

    def renamed(name: str) -> str:
        short = name.removeprefix("base_model.model.")
        old, new = next(pair for pair in OLD_NAMES[base] if short.startswith(pair[0]))
        return prefix + new + short.removeprefix(old)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[renamed(name)] = tensors.pop(name)

    rewrite(adapter, rename)
    ours = load_file(bundle_of(adapter, tmp_path / "bundle") / "weights.safetensors")
    for name, value in ours.items():
        assert (value - merged[name]).abs().max() <= 1e-6 * merged[name].abs().max(), name


@pytest.mark.parametrize("base", SPECS)
def test_answers_equal_the_merged_models(bases: Bases, tmp_path: Path, base: str) -> None:
    """Unpruned greedy tokens, and logits of every step, against transformers on the model that peft merged and saved."""
    targets = ["q_proj", "v_proj", "o_proj", "down_proj", "linear_1", "qkv", "lm_head"]
    adapter = write_random_adapter(bases.get(base), tmp_path / "adapter", target_modules=targets)
    merged = shutil.copytree(bases.get(base), tmp_path / "merged")
    merged_by_peft(bases.get(base), adapter).save_pretrained(merged)
    picture = random_image(3, (84, 84))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    tokens, logits = Transformers(merged, SPECS[base]).generate(messages, [picture], 8)
    plain, _ = Transformers(bases.get(base), SPECS[base]).generate(messages, [picture], 8)
    pipeline = Pipeline(bundle_of(adapter, tmp_path / "bundle", max_visual_tokens=200), threads=1)
    ours = pipeline.generate(messages, [picture], max_new_tokens=8, ignore_eos=True)
    assert ours.token_ids == tokens != plain
    assert relative_error(pipeline.score(messages, [picture], tokens), logits) < 1e-3


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_merged_weights_are_quantized(bases: Bases, tmp_path: Path, scheme: str) -> None:
    """As those of the merged checkpoint; a value next to the middle between two steps may fall to either."""
    adapter = write_random_adapter(bases.get("llava"), tmp_path / "adapter", target_modules=["q_proj", "up_proj", "lm_head"])
    merged = shutil.copytree(bases.get("llava"), tmp_path / "merged")
    merged_by_peft(bases.get("llava"), adapter).save_pretrained(merged)
    ours, theirs, plain = (
        load_file(bundle_of(model, tmp_path / f"bundle-{number}", quantize=scheme) / "weights.safetensors")
        for number, model in enumerate((adapter, merged, bases.get("llava")))
    )
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if value.dtype == torch.float32:
            np.testing.assert_allclose(value.numpy(), theirs[name].numpy(), rtol=1e-5, atol=1e-6)
        else:
            assert (value != theirs[name]).float().mean() < 0.01, name
    assert sum(not torch.equal(value, plain[name]) for name, value in ours.items()) >= 6


def test_weights_beside_an_adapter_are_its_base(bases: Bases, tmp_path: Path) -> None:
    """As in transformers, whatever base_model_name_or_path says."""
    folder = shutil.copytree(bases.get("llava"), tmp_path / "both")
    write_random_adapter(folder, folder, target_modules=["q_proj"])
    reconfigure(folder, base_model_name_or_path="org/somewhere-else")
    ours = load_file(bundle_of(folder, tmp_path / "bundle") / "weights.safetensors")
    theirs = load_base(folder).state_dict()  # transformers puts the adapter beside the weights
    module, name = "model.language_model.layers.0.self_attn.q_proj", "language_model.model.layers.0.self_attn.q_proj.weight"
    weight, up, down = (theirs[f"{module}.{part}.weight"] for part in ("base_layer", "lora_B.default", "lora_A.default"))
    expected = weight + 6 / 4 * up @ down
    assert (ours[name] - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert not torch.equal(ours[name], weight)
