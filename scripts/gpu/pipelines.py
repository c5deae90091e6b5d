"""Opens a bundle the way a comparison wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scripts.gpu.end_to_end.contenders import BundleTarget
    from sts_export.generation.pipeline import Pipeline


def open_pipeline(target: BundleTarget, threads: int | None = None) -> Pipeline:
    """The pipeline of a bundle.

    Args:
        threads: of the CPU.

    Raises:
        StsExportError: the bundle or the backend cannot be used.
    """
    from sts_export.generation.pipeline import Pipeline

    options: dict[str, Any] = {}
    if target.operators is not None:
        options["plugins"] = target.operators
    if target.sdpa_kernel is not None:
        options["cuda_options"] = {"sdpa_kernel": target.sdpa_kernel}
    return Pipeline(target.bundle, backend=target.backend, threads=threads, **options)
