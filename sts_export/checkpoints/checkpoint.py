"""Open a Hugging Face checkpoint folder lazily: config and tensor directory, no tensor data, no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sts_export.checkpoints.git_lfs import refuse_pointer
from sts_export.checkpoints.kinds import check_kind
from sts_export.checkpoints.safetensors_header import TensorEntry, read_header
from sts_export.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MODEL_FILES = ("config.json", "generation_config.json")
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
class Adapter:
    """A LoRA adapter that was merged into a checkpoint's tensors.

    Args:
        folder: where it lies; the checkpoint's own folder, or another one.
        file: its weights.
        targets: names in the graphs of the tensors it changes.
    """

    folder: Path
    file: Path
    targets: frozenset[str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder.

    Args:
        folder: of config.json and the model's own weights.
        tensors: by the names stored in the files; those that an adapter changes are merged while they are read.
        shards: each weight file, and each file of the adapter, with its fingerprint.
        processor_folder: of tokenizer, chat template and image processor.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    shards: dict[Path, str]
    processor_folder: Path
    adapter: Adapter | None = None

    @property
    def given(self) -> Path:
        """The folder that was opened: an adapter's own, where it lies apart from its base."""
        return self.folder if self.adapter is None else self.adapter.folder

    def own_tensors(self) -> list[TensorEntry]:
        """Those of the model's own files, without those that an adapter holds whole, in whatever type it was trained in."""
        return [entry for entry in self.tensors.values() if self.adapter is None or entry.file != self.adapter.file]

    def companions(self) -> dict[str, Path]:
        """Tokenizer, processor and configuration files of the checkpoint, by their names in a bundle.

        Chat templates may be in a folder of their own.
        """
        others = {file for pattern in _COMPANION_PATTERNS for file in self.processor_folder.glob(pattern)}
        files = {name: (self.folder if name in MODEL_FILES else self.processor_folder) / name for name in COMPANION_FILES}
        files |= {file.relative_to(self.processor_folder).as_posix(): file for file in sorted(others)}
        return {name: file for name, file in files.items() if file.is_file()}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: missing, unreadable, or not a JSON object.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # a BOM is one, as for transformers
        refuse_pointer(file)
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{file} is not valid JSON ({reason}); download or copy it again") from None
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
    check_kind(config, [file.name for file in folder.iterdir()], str(folder))
    tensors: dict[str, TensorEntry] = {}
    shards: dict[Path, str] = {}
    for name, expected in _weight_files(folder, config).items():
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
    return Checkpoint(folder.resolve(), config, tensors, shards, folder.resolve())


def first_weights(config: Mapping[str, Any], has: Callable[[str], bool]) -> str | None:
    """The weight file, or index of weight files, that transformers loads; everything else beside config.json is ignored.

    Source: transformers ``modeling_utils.py``, ``_get_resolved_checkpoint_files``: what config.json names, then a single
    file, then an index; never a variant such as model.fp16.safetensors.

    Args:
        has: whether a file of that name lies beside config.json.

    Raises:
        CheckpointError: config.json names something that is no safetensors file or index in the folder.
    """
    named = config.get("transformers_weights")
    if named is None:
        return next((name for name in (SINGLE, INDEX) if has(name)), None)
    if (
        not isinstance(named, str)
        or not named.endswith((".safetensors", ".safetensors.index.json"))
        or Path(named).is_absolute()
        or ".." in Path(named).parts
    ):
        raise CheckpointError(
            f"transformers_weights {named!r} in config.json is no safetensors file or index in the folder; correct or remove it"
        )
    return named


def _weight_files(folder: Path, config: Mapping[str, Any]) -> dict[str, set[str]]:
    """Weight file names, each with the tensors that the index (if any) says it holds."""
    first = first_weights(config, lambda name: (folder / name).is_file())
    if first is None:
        raise _no_weights(folder)
    if not (folder / first).is_file():
        raise CheckpointError(f"{folder} lacks {first}, which config.json names as its weights; download it again")
    if not first.endswith(".json"):
        return {first: set()}
    weight_map = read_json(folder / first).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / first} has no weight_map; download or copy it again")
    files: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        files.setdefault(str(name), set()).add(tensor)
    missing = sorted(name for name in files if not (folder / name).is_file() or Path(name).name != name)
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(files)} weight files (first: {missing[0]}); download it again"
        )
    return files


def _no_weights(folder: Path) -> CheckpointError:
    variants = sorted(file.name for file in folder.glob("model.*.safetensors"))
    if variants:
        return CheckpointError(
            f"{folder} has no {SINGLE} but variants, which are loaded only where asked for ({variants[0]}); "
            f"rename the one you want to {SINGLE}"
        )
    if any(any(folder.glob(pattern)) for pattern in _PICKLES):
        return CheckpointError(f"{folder} has pickle weights only, which are never loaded; convert them to safetensors first")
    return CheckpointError(f"{folder} has no {SINGLE} and no {INDEX}; download the weights first")


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """Whether the files that the runtime will need besides weights are there at all; what is in them is tried out later.

    Raises:
        CheckpointError: no tokenizer, or a git-lfs pointer in place of a file.
    """
    companions = checkpoint.companions()
    for file in companions.values():
        refuse_pointer(file)
    if not any(_matches(name, _VOCABULARIES) for name in companions):
        raise CheckpointError(
            f"{checkpoint.processor_folder} has no tokenizer.json; copy the tokenizer files of the model to it"
        )


def has_processor(folder: Path) -> bool:
    """Whether both tokenizer and image processor lie in ``folder``, as transformers' processors save them together.

    Raises:
        CheckpointError: a processor_config.json that is not valid JSON.
    """
    if not any(file.is_file() for pattern in _VOCABULARIES for file in folder.glob(pattern)):
        return False
    nested_file = folder / "processor_config.json"
    nested = read_json(nested_file).get("image_processor") if nested_file.is_file() else None
    return isinstance(nested, dict) or (folder / "preprocessor_config.json").is_file()


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
