"""What kind of checkpoint a folder or repository is, told from config.json and file names; only plain ones are exported.

A kind that cannot be exported is refused by its own name, before anything about its tensors is said.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from sts_export.errors import CheckpointError

# What the methods are called in public, where that is not how transformers' ``quant_method`` spells them.
_METHODS = {"gptq": "GPTQ", "awq": "AWQ", "hqq": "HQQ", "modelopt": "ModelOpt"}
# Written beside config.json by AutoGPTQ, by AutoAWQ and LLM-AWQ, and by TensorRT Model Optimizer.
_QUANTIZATION_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
_QUANTIZATION_KEYS = ("quantization_config", "compression_config")
# Of the LLaVA authors' own code, which transformers does not load; Source: github.com/haotian-liu/LLaVA.
_ORIGINAL_TYPES = ("llava_llama", "llava_mistral", "llava_mpt", "llava_qwen")
_ORIGINAL_KEYS = ("mm_vision_tower", "mm_projector_type", "mm_hidden_size")
# Classes in auto_map that read no weights; what they make is made by transformers' own.
_PREPARING = ("AutoProcessor", "AutoTokenizer", "AutoImageProcessor", "AutoVideoProcessor", "AutoFeatureExtractor")
# Of transformers' distributed saves, which go before any other file; Source: ``distributed/checkpoint.py``.
_RANK_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
# Whole weights that training code saves beside an adapter and puts back itself; peft and transformers would leave them out.
# Of LLaVA (non_lora_trainables), Qwen2-VL-Finetune (non_lora_state_dict) and ms-swift (vit).
_BESIDE_AN_ADAPTER = re.compile(r"non_lora_.+\.(bin|safetensors)|vit\.safetensors")


def check_kind(config: dict[str, Any], names: Collection[str], label: str) -> None:
    """Accept plain checkpoints only.

    Args:
        config: config.json.
        names: files beside it.
        label: what to call the folder or repository.

    Raises:
        CheckpointError: quantized weights, LLaVA's original format, code of its own, or one file a rank.
    """
    _check_original(config, label)
    _check_quantized(config, names, label)
    _check_code(config, label)
    if any(_RANK_SHARD.fullmatch(name) for name in names):
        raise CheckpointError(
            f"{label} is a distributed save, a shard for each rank; gather and save it again with model.save_pretrained"
        )


def check_adapter_files(names: Collection[str], label: str) -> None:
    """An adapter whose file holds everything that was trained.

    Args:
        names: files beside it.
        label: what to call the folder or repository.

    Raises:
        CheckpointError: other weights lie beside it, which only the code that trained them knows how to use.
    """
    others = sorted(name for name in names if _BESIDE_AN_ADAPTER.fullmatch(name))
    if others:
        raise CheckpointError(
            f"{label} has {others[0]} beside its adapter, trained weights that are no part of it and would be left out; "
            "merge both with the code that trained them and export the merged model"
        )


def _check_original(config: dict[str, Any], label: str) -> None:
    signs = [key for key in _ORIGINAL_KEYS if key in config]
    if config.get("model_type") in _ORIGINAL_TYPES:
        signs.append(f"model_type {config['model_type']}")
    if signs:
        raise CheckpointError(
            f"{label} is a LLaVA in its authors' original format ({signs[0]} in config.json), which transformers cannot load; "
            "give the converted model, such as llava-1.5-7b or one of the same name from llava-hf, or convert it with "
            "convert_llava_weights_to_hf.py of transformers 4"
        )


def _check_quantized(config: dict[str, Any], names: Collection[str], label: str) -> None:
    parts = {"config.json": config} | {
        f"{name} of config.json": config[name]
        for name in ("text_config", "vision_config")
        if isinstance(config.get(name), dict)
    }
    for where, part in parts.items():
        for key in _QUANTIZATION_KEYS:
            if part.get(key) is not None:
                raise _quantized(label, _method(part[key]), f"{key} in {where}")
    for name, method in _QUANTIZATION_FILES.items():
        if name in names:
            raise _quantized(label, method, name)


def _quantized(label: str, method: str, sign: str) -> CheckpointError:
    return CheckpointError(
        f"{label} is quantized with {_METHODS.get(method, method)} ({sign}), which is not exported; "
        "export the unquantized model with --quantize int4 or int8"
    )


def _method(settings: object) -> str:
    """transformers' name of the method; bitsandbytes says it by its number of bits."""
    if not isinstance(settings, dict):
        return "an unknown method"
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return f"bitsandbytes {4 if settings.get('load_in_4bit') else 8}-bit"
    return str(settings.get("quant_method") or "an unknown method")


def _check_code(config: dict[str, Any], label: str) -> None:
    """transformers runs a folder's own classes with trust_remote_code; a model's may compute something else."""
    classes = config.get("auto_map")
    if isinstance(classes, dict):
        classes = {name: own for name, own in classes.items() if name not in _PREPARING}
    if classes:
        example = next(iter(classes.values())) if isinstance(classes, dict) else classes
        raise CheckpointError(
            f"{label} brings code of its own (auto_map in config.json names {example}), which is not exported; "
            "if transformers' own class is the same model, remove auto_map"
        )
