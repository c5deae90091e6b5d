"""The PyTorch reference of a bundle: of the checkpoint that the bundle was made from, with the bundle's image settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sts_export.adapters.opening import open_model
from sts_export.bundle.manifest import Bundle
from sts_export.errors import CheckpointError
from sts_export.hub import locate_model

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
