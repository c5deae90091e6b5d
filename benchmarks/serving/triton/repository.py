"""The repository that `sts-export triton --link` writes."""

from __future__ import annotations

from pathlib import Path

from sts_export.triton.repository.options import RepositoryOptions
from sts_export.triton.repository.writing import write_repository


def repository(bundle: Path, output: Path, model: str, slots: int, *, reuse: str) -> Path:
    """Write it; ``reuse`` as for `serve`: none, pictures or all."""
    write_repository(
        RepositoryOptions(
            bundle,
            output,
            model,
            slots=slots,
            feature_cache=0 if reuse == "none" else None,
            reuse_prefixes=reuse == "all",
            link=True,
        )
    )
    return output
