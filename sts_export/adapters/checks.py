"""What else forbids a merge once the model is known, and what the manifest tells of one."""

from __future__ import annotations

from dataclasses import replace

from sts_export.checkpoints.checkpoint import MODEL_FILES, Adapter, Checkpoint
from sts_export.errors import CheckpointError, RequestError
from sts_export.families.build import Names
from sts_export.families.spec import ModelSpec


def check_mergeable(adapter: Adapter, spec: ModelSpec, names: Names, *, linked: bool) -> None:
    """Merged weights are nowhere to be linked to; and a shared matrix cannot change for one of its two uses only.

    While an adapter is trained, its change of a tied embedding is not seen by the head, or the other way round; once it is
    merged, it is (peft warns of it).  Neither is more right than the other.

    Raises:
        RequestError: links were asked for.
        CheckpointError: the adapter changes a matrix that embedding and head share.
    """
    if linked:
        raise RequestError(f"--weights link cannot merge the adapter in {adapter.folder}: use --weights copy")
    shared = {f"{names.decoder}.embed_tokens.weight", f"{names.head}.weight"} & adapter.targets
    if shared and spec.decoder.tie_word_embeddings:
        raise shared_matrix(min(shared))


def shared_matrix(name: str) -> CheckpointError:
    """For an adapter that changes the matrix that embedding and head share; it may change either, or both differently."""
    return CheckpointError(
        f"the adapter changes {name}, which embedding and head share, and is made for each of them apart; merge it with "
        "peft's merge_and_unload into a model with tie_word_embeddings false, and export that"
    )


def unused_files(checkpoint: Checkpoint) -> list[str]:
    """Tokenizer files and chat templates beside an adapter that the base's are taken instead of, and that differ from those."""
    adapter = checkpoint.adapter
    if adapter is None or checkpoint.processor_folder == adapter.folder:
        return []
    own = replace(checkpoint, folder=adapter.folder, processor_folder=adapter.folder).companions()
    used = checkpoint.companions()
    return [
        name
        for name, file in own.items()
        if name not in MODEL_FILES and (name not in used or file.read_bytes() != used[name].read_bytes())
    ]
