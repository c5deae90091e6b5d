"""What --model names -> the checkpoint that is exported: a model's folder, with the adapter that lies in it, if any.

Which base an adapter belongs to is decided as in transformers (``integrations/peft.py``, maybe_load_adapters): the weights
beside it, otherwise what its base_model_name_or_path names.  transformers looks for config.json where this looks for weights;
where only one of them lies beside an adapter, transformers fails.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sts_export.adapters.settings import LoraSettings, read_settings
from sts_export.adapters.tensors import merged_tensors
from sts_export.checkpoints.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    SINGLE,
    Adapter,
    Checkpoint,
    has_processor,
    open_checkpoint,
)
from sts_export.checkpoints.kinds import check_adapter_files
from sts_export.checkpoints.safetensors_header import TensorEntry, fingerprint, read_header
from sts_export.errors import CheckpointError
from sts_export.hub import locate_model


def open_model(folder: Path) -> Checkpoint:
    """:func:`sts_export.checkpoints.checkpoint.open_checkpoint`, with the tensors as the folder's adapter changes them.

    The adapter's two files count as weights, so that the bundle's identity has their fingerprints.

    Raises:
        CheckpointError: as open_checkpoint; an adapter that cannot be merged, or that is not of this model.
        StsExportError: the adapter's base is on a hub that cannot be reached.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return open_checkpoint(folder)
    settings = read_settings(folder)
    entries, digest = _read_weights(folder)
    base = _open_base(folder, settings)
    tensors, targets = merged_tensors(base, settings, entries)
    file, config = (folder / ADAPTER_WEIGHTS).resolve(), (folder / ADAPTER_CONFIG).resolve()
    return replace(
        base,
        tensors=tensors,
        shards={**base.shards, file: digest, config: fingerprint(config)},
        adapter=Adapter(folder.resolve(), file, targets),
        processor_folder=folder.resolve() if has_processor(folder) else base.folder,
    )


def _read_weights(folder: Path) -> tuple[dict[str, TensorEntry], str]:
    check_adapter_files([file.name for file in folder.iterdir()], str(folder))
    if (folder / ADAPTER_WEIGHTS).is_file():
        return read_header((folder / ADAPTER_WEIGHTS).resolve())
    if (folder / "adapter_model.bin").is_file():
        raise CheckpointError(
            f"{folder} has its adapter as a pickle, adapter_model.bin, which is never loaded; save it as safetensors first"
        )
    raise CheckpointError(f"{folder} has {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}; download it, or remove {ADAPTER_CONFIG}")


def _open_base(folder: Path, settings: LoraSettings) -> Checkpoint:
    if any((folder / name).is_file() for name in (SINGLE, INDEX)):
        return open_checkpoint(folder)
    if settings.base is None:
        raise CheckpointError(
            f"{folder} is an adapter whose {ADAPTER_CONFIG} names no base model; put the folder of one into its "
            "base_model_name_or_path"
        )
    try:
        base = locate_model(settings.base)
        if (base / ADAPTER_CONFIG).is_file():
            raise CheckpointError(f"{base} has an adapter itself; merge that one first with peft's merge_and_unload")
        return open_checkpoint(base)
    except CheckpointError as error:
        raise CheckpointError(
            f"the base model that {folder / ADAPTER_CONFIG} names cannot be used: {error}; to merge into another model, "
            "put its folder or hub id into base_model_name_or_path"
        ) from None
