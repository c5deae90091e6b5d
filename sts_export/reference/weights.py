"""The weights of a checkpoint as transformers loads them, and an adapter's merged into them with plain torch."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sts_export.errors import CheckpointError

# Releases nest the parts of a model under these names in different ways; what is left of a name is unambiguous.
_WRAPPERS = {"model", "base_model", "language_model", "vision_model", "base_layer"}


@dataclass(frozen=True)
class Source:
    """Folders of a reference model.

    Args:
        model: config.json and weights.
        processor: tokenizer, chat template and image processor.
        adapter: adapter_config.json and adapter_model.safetensors of a LoRA to merge, or None.
    """

    model: str
    processor: str
    adapter: Path | None = None


def load_weights(architecture: Any, source: Source, dtype: torch.dtype, attention: str) -> Any:
    """``architecture.from_pretrained``, with every missing weight an error, and the adapter merged.

    Raises:
        CheckpointError: a weight is missing or has another shape, or an adapter's weight has no place.
    """
    own: dict[str, Any] = {"pretrained_model_name_or_path": source.model}
    if source.adapter is not None:
        # Given a folder, transformers would put an adapter that lies in it beside the weights, or leave it out, depending on
        # whether peft is installed.
        own = {
            "pretrained_model_name_or_path": None,
            "config": architecture.config_class.from_pretrained(source.model, local_files_only=True),
            "state_dict": _stored(Path(source.model)),
        }
    model, info = architecture.from_pretrained(
        **own,
        dtype=dtype,
        attn_implementation=attention,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if info[problem]:
            example = sorted(map(str, info[problem]))[0]
            raise CheckpointError(
                f"{source.model}: {len(info[problem])} {problem.replace('_', ' ')}, for example {example}: "
                "download or save the checkpoint again"
            )
    model = model.eval().requires_grad_(False)
    if source.adapter is not None:
        if (Path(source.model) / "generation_config.json").is_file():
            from transformers import GenerationConfig

            model.generation_config = GenerationConfig.from_pretrained(source.model, local_files_only=True)
        merge(model, source.adapter)
    return model


def _stored(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    single = folder / "model.safetensors"
    if single.is_file():
        return load_file(single)
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    return {
        name: value for file in sorted(set(index["weight_map"].values())) for name, value in load_file(folder / file).items()
    }


@torch.no_grad()
def merge(model: Any, adapter: Path) -> None:
    """Add ``scaling * B A`` of every adapted module to its weight, and put in what the adapter holds whole.

    Sources: "LoRA" (Hu et al. 2021), section 4.1; peft ``tuners/lora/layer.py``.

    Raises:
        CheckpointError: a tensor of the adapter without a place in the model.
    """
    from safetensors.torch import load_file

    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    places = {_plain(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    for name in sorted(tensors, key=lambda name: ".lora_" in name):  # what is whole first
        module, factor, _ = name.partition(".lora_")
        place = places.get(_plain(f"{module}.weight" if factor else name))
        if place is None:
            raise CheckpointError(f"{adapter}: {name} has no place in the model: use the adapter's own base model")
        if not factor:
            place.copy_(tensors[name])
        elif name.endswith("lora_A.weight"):
            down, up = tensors[name].double(), tensors[f"{module}.lora_B.weight"].double()
            change = (up.flatten(1) @ down.flatten(1)).view_as(place)
            place.copy_(place.double() + _scaling(settings, module, len(down)) * change)
        elif name.endswith("lora_embedding_A"):
            rows, width = tensors[name].double(), tensors[f"{module}.lora_embedding_B"].double()
            place.copy_(place.double() + _scaling(settings, module, len(rows)) * (width @ rows).T)


def _plain(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split(".") if part not in _WRAPPERS)


def _scaling(settings: dict[str, Any], module: str, rank: int) -> float:
    alpha: float = settings["lora_alpha"]
    for pattern, own in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module.removeprefix("base_model.model.")):
            alpha = own
            break
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
