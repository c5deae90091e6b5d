"""LoRA adapters with random factors, made, saved and merged by peft itself."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from sts_export.testing.checkpoints.files import read_json, write_json


def load_base(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)


def write_random_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """The adapter of a LoraConfig with these settings for the checkpoint in ``base``.

    Everything that it trains is random: factors large enough that every adapted weight changes visibly, biases and whole
    modules near their old values.  What is frozen in the file (peft saves targeted embeddings, too) stays as it was.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load_base(base), LoraConfig(**{"r": 4, "lora_alpha": 6, **settings}))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data = 0.15 * noise if "lora_" in name else parameter.data + 0.1 * noise
        model.save_pretrained(str(folder))
    return folder


def merged_by_peft(base: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The base model with the saved adapter merged into its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load_base(base, dtype), adapter).merge_and_unload()


def rewrite(folder: Path, change: Any) -> None:
    """``change`` the dict of an adapter's tensors in place."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def reconfigure(folder: Path, **changes: Any) -> None:
    write_json(folder / "adapter_config.json", {**read_json(folder / "adapter_config.json"), **changes})
