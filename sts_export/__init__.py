"""sts-export: vision-language models, pruned in two stages and deployed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sts_export.errors import StsExportError

if TYPE_CHECKING:
    from sts_export.runtime.pipeline import Pipeline

    __version__: str

__all__ = ["Pipeline", "StsExportError", "__version__"]


def __getattr__(name: str) -> Any:
    # Importing the package must cost nothing; the runtime pulls in onnxruntime and transformers.
    if name == "Pipeline":
        from sts_export.runtime.pipeline import Pipeline

        return Pipeline
    if name == "__version__":
        from importlib.metadata import version

        return version("sts-export")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
