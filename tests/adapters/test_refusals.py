"""Adapters that are not merged: one line each, that says what is wrong with which file, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, PromptTuningConfig, get_peft_model

from sts_export.cli import main
from sts_export.testing.checkpoints.adapters import load_base, reconfigure, rewrite, write_random_adapter
from tests.adapters.conftest import Bases
from tests.cli.helpers import error_line

Q = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


def drop(*names: str) -> Callable[[Path], object]:
    return lambda folder: rewrite(folder, lambda tensors: [tensors.pop(name) for name in names])


def add(**tensors: torch.Tensor) -> Callable[[Path], object]:
    """Names with ``__`` for dots."""
    return lambda folder: rewrite(
        folder, lambda held: held.update({name.replace("__", "."): value for name, value in tensors.items()})
    )


def put(name: str, tensor: torch.Tensor) -> Callable[[Path], object]:
    return lambda folder: rewrite(folder, lambda held: held.update({name: tensor}))


def configure(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: reconfigure(folder, **changes)


def truncate(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def of_the_decoder_alone(folder: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("language_model.", "")] = tensors.pop(name)

    rewrite(folder, rename)


def empty(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(b"")


# id: (what is done to a good adapter, what the line must say)
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    # files
    "no-weights": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        "has adapter_config.json but no adapter_model.safetensors; download it",
    ),
    "truncated": (truncate, "adapter_model.safetensors is truncated"),
    "pickle": (pickle, "has its adapter as a pickle, adapter_model.bin, which is never loaded"),
    **{
        f"beside-{name}": (
            empty(name),
            f"has {name} beside its adapter, trained weights that are no part of it",
        )
        for name in ("non_lora_trainables.bin", "non_lora_state_dict.bin", "non_lora_trainables.safetensors", "vit.safetensors")
    },
    "config-damaged": (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json is not valid JSON"),
    # the base
    "no-base": (configure(base_model_name_or_path=None), "names no base model"),
    "base-unknown": (
        configure(base_model_name_or_path="llava-9000"),
        "names cannot be used: unknown model 'llava-9000'",
    ),
    "base-offline": (
        configure(base_model_name_or_path="org/name"),
        "names cannot be used: org/name is not in the local cache",
    ),
    "base-revision-offline": (
        configure(base_model_name_or_path="org/name", revision="v2"),
        "names cannot be used: org/name@v2 is not in the local cache",
    ),
    # tensors
    "unknown-module": (
        put(Q.replace("q_proj", "z_proj") + ".lora_A.weight", torch.ones(4, 48)),
        "z_proj.lora_A.weight of the adapter fits no tensor of the model",
    ),
    "of-the-decoder-alone": (
        of_the_decoder_alone,
        "of the adapter fits no tensor of the model; the adapter is of another model, or of a part of it",
    ),
    "unknown-tensor": (
        put("base_model.model.score.weight", torch.ones(2, 48)),
        "score.weight of the adapter fits",
    ),
    "one-factor": (drop(f"{Q}.lora_B.weight"), f"{Q}.lora_A.weight of the adapter lacks its other factor"),
    "other-rank": (
        configure(r=8),
        "want [64, 8]; the adapter is of another model",
    ),
    "other-rank-in-a-pattern": (configure(rank_pattern={"q_proj": 2}), "rank 2 of adapter_config.json"),
    "other-width": (put(f"{Q}.lora_A.weight", torch.ones(4, 47)), f"{Q}.lora_A.weight of the adapter is [4, 47], but rank 4"),
    "whole-of-other-shape": (
        put("base_model.model.lm_head.weight", torch.ones(400, 48)),
        "base_model.model.lm_head.weight of the adapter is [400, 48] instead of [384, 48]",
    ),
    "type": (put(f"{Q}.lora_A.weight", torch.ones(4, 48, dtype=torch.int8)), "lora_A.weight of the adapter is of type I8"),
    "twice": (
        lambda f: rewrite(
            f,
            lambda t: [
                t.update({name.replace("model.language_model.layers", "language_model.model.layers"): value + 1})
                for name, value in list(t.items())
                if Q in name
            ],
        ),
        "are both language_model.model.layers.0.self_attn.q_proj.weight; save it again",
    ),
    "whole-twice": (
        add(
            base_model__model__lm_head__weight=torch.ones(384, 48),
            base_model__model__lm_head__base_layer__weight=torch.ones(384, 48),
        ),
        "of the adapter are both lm_head.weight",
    ),
    "magnitude": (put(f"{Q}.lora_magnitude_vector", torch.ones(64)), "lora_magnitude_vector of the adapter is no factor"),
    "factor-bias": (put(f"{Q}.lora_B.bias", torch.ones(64)), "lora_B.bias of the adapter is no factor of a plain LoRA"),
    "no-factors": (
        lambda f: rewrite(f, lambda t: (t.clear(), t.update({"base_model.model.lm_head.weight": torch.ones(384, 48)}))),
        "the adapter holds no LoRA factors",
    ),
    # settings
    "rank-zero": (configure(r=0), "adapter_config.json has an impossible value (rank 0)"),
    "alpha-text": (configure(lora_alpha="wide"), "impossible value (lora_alpha 'wide')"),
    "pattern-damaged": (configure(alpha_pattern={"(": 1}), "adapter_config.json has an impossible value"),
    "no-kind": (configure(peft_type=None), "has peft_type None, but only plain LoRA adapters are merged; merge it with peft's"),
    "task": (configure(task_type="SEQ_CLS"), "has task_type 'SEQ_CLS', but only"),
    **{
        f"initialized-{name}": (configure(init_lora_weights=name), f"has init_lora_weights '{name}', but only")
        for name in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica")
    },
    **{
        f"setting-{name}": (configure(**{name: value}), f"has {name}, but only plain LoRA adapters are merged")
        for name, value in {
            "use_dora": True,
            "lora_bias": True,
            "use_qalora": True,
            "megatron_config": {"tensor_model_parallel_size": 2},
            "trainable_token_indices": [5],
            "layer_replication": [[0, 2], [0, 2]],
            "target_parameters": ["mlp.experts"],
            "alora_invocation_tokens": [7],
            "arrow_config": {"top_k": 1},
            "a_setting_of_a_later_release": 1,
        }.items()
    },
}


@pytest.fixture(scope="module")
def good(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "adapter"
    return write_random_adapter(bases.get("llava"), folder, target_modules=r".*language_model.*(q_proj|v_proj)")


def refusal(model: Path, output: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    capsys.readouterr()
    assert main(["--model", str(model), "--budget", "12", "--output", str(output), *options]) == 2
    assert not output.exists() and not list(output.parent.glob(".*"))
    return error_line(capsys)


@pytest.mark.parametrize(("change", "expected"), WRONG.values(), ids=WRONG.keys())
def test_wrong_adapters(
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], object],
    expected: str,
) -> None:
    adapter = shutil.copytree(good, tmp_path / "adapter")
    change(adapter)
    assert expected in refusal(adapter, tmp_path / "bundle", capsys)


OTHER_KINDS = {
    "IA3": IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LOHA": LoHaConfig(target_modules=["q_proj"]),
    "PROMPT_TUNING": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.filterwarnings("ignore")
def test_other_kinds_of_adapters(bases: Bases, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    model = load_base(bases.get("llava"))
    if kind == "PROMPT_TUNING":  # peft looks for the decoder's sizes at the top
        model.config.update({"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4})
    get_peft_model(model, OTHER_KINDS[kind]).save_pretrained(str(tmp_path / "adapter"))
    assert f"has peft_type '{kind}', but only plain LoRA" in refusal(tmp_path / "adapter", tmp_path / "bundle", capsys)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"init_lora_weights": "pissa"}], ids=["dora", "pissa"])
def test_adapters_of_peft_that_are_not_plain(
    bases: Bases, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any]
) -> None:
    write_random_adapter(bases.get("llava"), tmp_path / "adapter", target_modules=["o_proj"], **settings)
    assert f"has {next(iter(settings))}" in refusal(tmp_path / "adapter", tmp_path / "bundle", capsys)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=["embedding", "head", "whole-embedding", "both"],
)
def test_a_shared_matrix(bases: Bases, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any]) -> None:
    write_random_adapter(bases.get("tied"), tmp_path / "adapter", **{"target_modules": ["q_proj"], **settings})
    message = refusal(tmp_path / "adapter", tmp_path / "bundle", capsys)
    assert (
        "which embedding and head share, and is made for each of them apart; merge it with peft's merge_and_unload" in message
    )


def test_merged_weights_cannot_be_linked(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(good, tmp_path / "bundle", capsys, "--weights", "link")
    assert message == f"--weights link cannot merge the adapter in {good}: use --weights copy"


@pytest.mark.parametrize("file", ["processor_config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [("{", "is not valid JSON"), ("version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer")],
    ids=["cut", "pointer"],
)
def test_a_damaged_processor_of_its_own(
    bases: Bases, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str, expected: str
) -> None:
    """The base's would be another one."""
    adapter = shutil.copytree(good, tmp_path / "adapter")
    shutil.copy(bases.get("llava") / "tokenizer.json", adapter)
    (adapter / file).write_text(content)
    assert f"{adapter / file} {expected}" in refusal(adapter, tmp_path / "bundle", capsys)


def test_a_base_with_an_adapter_of_its_own(
    bases: Bases, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(bases.get("llava"), tmp_path / "base")
    adapter = shutil.copytree(good, tmp_path / "adapter")
    for file in good.glob("adapter_*"):
        shutil.copy(file, base)
    reconfigure(adapter, base_model_name_or_path=str(base))
    assert f"names cannot be used: {base} has an adapter itself" in refusal(adapter, tmp_path / "bundle", capsys)


def test_a_quantized_base(bases: Bases, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an adapter was trained on may be quantized; what it is merged into may not."""
    base = shutil.copytree(bases.get("llava"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    adapter = shutil.copytree(good, tmp_path / "adapter")
    reconfigure(adapter, base_model_name_or_path=str(base))
    message = refusal(adapter, tmp_path / "bundle", capsys)
    assert f"{adapter / 'adapter_config.json'} names cannot be used: {base} is quantized with bitsandbytes 4-bit" in message
    assert message.endswith("to merge into another model, put its folder or hub id into base_model_name_or_path")


@pytest.mark.parametrize("held", ["adapter", "base"])
def test_the_source_is_never_replaced(
    bases: Bases, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], held: str
) -> None:
    """A bundle's folder that has the adapter, or its base, in it."""
    bundle = tmp_path / "bundle"
    assert main(["--model", str(bases.get("llava")), "--budget", "12", "--output", str(bundle)]) == 0
    base, adapter = (bundle if held == name else tmp_path / "elsewhere" for name in ("base", "adapter"))
    base, adapter = shutil.copytree(bases.get("llava"), base / "b"), shutil.copytree(good, adapter / "a")
    reconfigure(adapter, base_model_name_or_path=str(base))
    capsys.readouterr()
    assert main(["--model", str(adapter), "--budget", "12", "--output", str(bundle), "--force"]) == 2
    assert "holds the checkpoint itself, so --force does not replace it" in error_line(capsys)
