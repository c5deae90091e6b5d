"""Which stored matrices are the embedding and the head.

What ``tie_word_embeddings`` asks for, transformers does only as far as the files allow:

    stored             tied                                        not tied
    both, equal        one matrix                                  two (equal) matrices
    both, different    two matrices, in spite of the setting       two matrices
    only one           that one for both                           the missing one would be random

Source: transformers ``modeling_utils.py``, ``PreTrainedModel.tie_weights``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sts_export.checkpoints.checkpoint import Checkpoint
from sts_export.errors import CheckpointError
from sts_export.exporting.weights import same_content
from sts_export.families.family import Family
from sts_export.families.spec import ModelSpec

CanonicalName = Callable[[str], str]


def resolve_head(checkpoint: Checkpoint, family: Family, spec: ModelSpec) -> tuple[ModelSpec, CanonicalName]:
    """The dimensions with ``tie_word_embeddings`` as the files have it, and the names that fit them.

    A head that is stored alone takes the name of the embedding.  Two stored matrices are compared in a stream.

    Raises:
        CheckpointError: the head is missing, and nothing ties it to the embedding.
    """
    embedding, head = f"{family.names.decoder}.embed_tokens.weight", f"{family.names.head}.weight"
    stored = {family.canonical_name(name): entry for name, entry in checkpoint.tensors.items()}
    if not spec.decoder.tie_word_embeddings:
        if embedding in stored and head not in stored:
            raise CheckpointError(
                f"the checkpoint lacks {head}, and config.json does not tie it to the embedding; restore it, or set "
                "tie_word_embeddings there if the model shares one matrix"
            )
        return spec, family.canonical_name
    if embedding in stored and head in stored and not same_content(stored[embedding], stored[head]):
        return replace(spec, decoder=replace(spec.decoder, tie_word_embeddings=False)), family.canonical_name
    if head in stored and embedding not in stored:
        return spec, _renamed(family.canonical_name, head, embedding)
    return spec, family.canonical_name


def _renamed(canonical_name: CanonicalName, old: str, new: str) -> CanonicalName:
    def rename(name: str) -> str:
        target = canonical_name(name)
        return new if target == old else target

    return rename
