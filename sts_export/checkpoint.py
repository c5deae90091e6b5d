"""Open a Hugging Face checkpoint folder lazily: config and tensor directory, no tensor data, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sts_export.errors import CheckpointError
from sts_export.git_lfs import refuse_pointer
from sts_export.safetensors_header import TensorEntry, read_header

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# What the runtime needs of a checkpoint besides weights, where present.
COMPANION_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
# Vocabularies that transformers takes where there is no tokenizer.json, and tokenizer.json of another release.
_OTHER_VOCABULARIES = ("tokenizer.*.json", "tokenizer.model.*", "spm.model", "tiktoken.model", "tekken.json")
_COMPANION_PATTERNS = (*_OTHER_VOCABULARIES, "additional_chat_templates/*.jinja")
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", *_OTHER_VOCABULARIES)


def is_companion(name: str) -> bool:
    """Whether the runtime needs the file of this name, relative to the checkpoint's folder and with ``/``, if it is there."""
    return name in COMPANION_FILES or _matches(name, _COMPANION_PATTERNS)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether name and pattern have equally many parts and each part matches."""
    path = PurePosixPath(name)
    return any(len(path.parts) == len(PurePosixPath(pattern).parts) and path.match(pattern) for pattern in patterns)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder.

    ``tensors`` maps the names stored in the files; ``shards`` maps each weight file to its fingerprint.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    shards: dict[Path, str]

    def companions(self) -> list[Path]:
        """Tokenizer, processor and configuration files of the checkpoint; chat templates may be in a folder of their own."""
        others = {file for pattern in _COMPANION_PATTERNS for file in self.folder.glob(pattern)}
        files = [*(self.folder / name for name in COMPANION_FILES), *sorted(others)]
        return [file for file in files if file.is_file()]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: missing, unreadable, or not a JSON object.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError):
        refuse_pointer(file)
        raise CheckpointError(f"{file} is not valid JSON; download or copy it again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} is not a JSON object; download or copy it again")
    return data


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config.json and every safetensors header.

    Raises:
        CheckpointError: not a checkpoint folder, pickle weights only, missing or damaged shard.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; --model takes a checkpoint folder, a hub id or an alias")
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is not a checkpoint: it has no config.json; give the folder that from_pretrained takes"
        )
    config = read_json(folder / "config.json")
    tensors: dict[str, TensorEntry] = {}
    shards: dict[Path, str] = {}
    for name, expected in _weight_files(folder).items():
        entries, digest = read_header((folder / name).resolve())
        shards[(folder / name).resolve()] = digest
        lost = sorted(expected - entries.keys())
        if lost:
            raise CheckpointError(
                f"{folder / name} lacks {len(lost)} tensors its index names (first: {lost[0]}); download it again"
            )
        for tensor, entry in entries.items():
            if tensor in tensors:
                raise CheckpointError(
                    f"tensor {tensor} is in {tensors[tensor].file.name} and in {name}; remove one of the files"
                )
            tensors[tensor] = entry
    return Checkpoint(folder.resolve(), config, tensors, shards)


def _weight_files(folder: Path) -> dict[str, set[str]]:
    """Weight file names, each with the tensors that the index (if any) says it holds."""
    if (folder / _INDEX).is_file():
        weight_map = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{folder / _INDEX} has no weight_map; download or copy it again")
        files: dict[str, set[str]] = {}
        for tensor, name in weight_map.items():
            files.setdefault(str(name), set()).add(tensor)
        missing = sorted(name for name in files if not (folder / name).is_file() or Path(name).name != name)
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(files)} weight files (first: {missing[0]}); download it again"
            )
        return files
    if (folder / _SINGLE).is_file():
        return {_SINGLE: set()}
    if any(any(folder.glob(pattern)) for pattern in _PICKLES):
        raise CheckpointError(f"{folder} has pickle weights only, which are never loaded; convert them to safetensors first")
    raise CheckpointError(f"{folder} has no {_SINGLE} and no {_INDEX}; download the weights first")


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """Whether the files that the runtime will need besides weights are there at all; what is in them is tried out later.

    Raises:
        CheckpointError: no tokenizer, or a git-lfs pointer in place of a file.
    """
    companions = checkpoint.companions()
    for file in companions:
        refuse_pointer(file)
    if not any(_matches(file.name, _VOCABULARIES) for file in companions):
        raise CheckpointError(f"{checkpoint.folder} has no tokenizer.json; copy the tokenizer files of the model to it")


def image_processor_settings(folder: Path) -> tuple[dict[str, Any], Path]:
    """The image processor's settings and the file they are from.

    As in transformers, the ``image_processor`` part of processor_config.json goes before preprocessor_config.json.

    Raises:
        CheckpointError: none, or not valid JSON.
    """
    nested_file = folder / "processor_config.json"
    if nested_file.is_file():
        nested = read_json(nested_file).get("image_processor")
        if isinstance(nested, dict):
            return nested, nested_file
    plain_file = folder / "preprocessor_config.json"
    if plain_file.is_file():
        return read_json(plain_file), plain_file
    raise CheckpointError(
        f"{folder} has no image processor: neither preprocessor_config.json nor an image_processor in processor_config.json; "
        "copy it from the model"
    )


def image_processor_kind(settings: Mapping[str, Any], source: Path) -> str:
    """transformers' name of the image processor, without the suffix Fast or Pil, and not as the feature extractor it once was.

    Raises:
        CheckpointError: the settings name none.
    """
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    if not isinstance(kind, str):
        raise CheckpointError(
            f"{source} does not name its image processor (image_processor_type); copy the original model's file"
        )
    return kind.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")


# Of transformers' Qwen2VLImageProcessor.
_PATCH_DEFAULTS = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}


def check_patches(checkpoint: Checkpoint, settings: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """A tower of patches needs an image processor that cuts the same ones.

    Args:
        sizes: name of the processor's setting -> the tower's value.

    Raises:
        CheckpointError: one of them differs.
    """
    for name, size in sizes.items():
        if settings.get(name, _PATCH_DEFAULTS[name]) != size:
            raise CheckpointError(
                f"the image processor in {checkpoint.folder} has {name} {settings.get(name)!r}, the vision tower {size}; "
                "use the processor files of this model"
            )


def check_crop(checkpoint: Checkpoint, settings: Mapping[str, Any], image_size: int) -> None:
    """A tower of one size needs pictures of that size.

    Raises:
        CheckpointError: the image processor makes others.
    """
    crop = settings.get("crop_size") if settings.get("do_center_crop", True) else None
    size = crop.get("height") if isinstance(crop, dict) else crop
    if isinstance(size, int) and size != image_size:
        raise CheckpointError(
            f"the image processor in {checkpoint.folder} crops to {size} pixels, the vision tower takes {image_size}; "
            "use the processor files of this model"
        )
