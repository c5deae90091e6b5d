"""The PyTorch reference of a bundle: of the checkpoint that the bundle was made from, with the bundle's image settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sts_export.adapters.opening import open_model
from sts_export.bundle.manifest import Bundle
from sts_export.checkpoints.safetensors_header import fingerprint
from sts_export.errors import CheckpointError
from sts_export.hub import locate_model
from sts_export.paths import user_path

if TYPE_CHECKING:
    from sts_export.reference import ReferenceModel


def open_reference(bundle: Bundle, checkpoint: str | None = None) -> ReferenceModel:
    """The reference in float32.  PyTorch must be there.

    Args:
        checkpoint: alias, hub id or folder; None: the one that the manifest names.

    Raises:
        CheckpointError: the source checkpoint is gone (give it with --checkpoint) or another one.
    """
    source = bundle.manifest.source
    folder = locate_model(checkpoint) if checkpoint else Path(source.folder)
    if not folder.is_dir():
        raise CheckpointError(f"the source checkpoint {folder} is gone; give it with --checkpoint")
    now = open_model(folder)
    if sorted(now.shards.values()) != sorted(source.weights.values()):
        raise CheckpointError(f"{folder} is not the checkpoint this bundle was made from; give that one with --checkpoint")
    from transformers.utils.logging import disable_progress_bar

    from sts_export.reference import ReferenceModel

    disable_progress_bar()  # it would print "Loading weights" between report and errors
    merged = None if now.adapter is None else now.adapter.folder
    model = ReferenceModel.open(now.folder, adapter=merged, processor=now.processor_folder)
    # --max-visual-tokens makes pictures smaller: by the processor settings in the bundle, not the checkpoint's.
    images = model.processor.image_processor
    model.processor.image_processor = type(images).from_pretrained(bundle.folder, local_files_only=True)
    return model


def selector_file(bundle: Bundle, given: str | None = None) -> Path | None:
    """The file with the weights of a bundle's trained selector, as the export read it; None for a bundle without one.

    Args:
        given: None: the file that the manifest names.

    Raises:
        CheckpointError: it is gone (give it with --selector-weights) or another one, or given and not needed.
    """
    source = bundle.manifest.source.selector
    if source is None:
        if given is not None:
            raise CheckpointError("this bundle has no trained selector: leave out --selector-weights")
        return None
    file = user_path(source.file if given is None else given)
    if not file.is_file():
        raise CheckpointError(f"the selector's weights {file} are gone; give them with --selector-weights")
    if fingerprint(file) != source.sha256:
        raise CheckpointError(f"{file} is not the selector this bundle was made from; give that one with --selector-weights")
    return file
