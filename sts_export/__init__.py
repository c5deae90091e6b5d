"""sts-export: vision-language models, pruned in two stages and deployed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sts_export.errors import StsExportError

if TYPE_CHECKING:
    from sts_export.generation.pipeline import Pipeline
    from sts_export.requests.grammars.grammar import Grammar
    from sts_export.requests.logits_config import LogitsConfig
    from sts_export.requests.sampling_config import SamplingConfig

    __version__: str

__all__ = ["Grammar", "LogitsConfig", "Pipeline", "SamplingConfig", "StsExportError", "__version__"]

_HOMES = {
    "Grammar": "sts_export.requests.grammars.grammar",
    "LogitsConfig": "sts_export.requests.logits_config",
    "Pipeline": "sts_export.generation.pipeline",
    "SamplingConfig": "sts_export.requests.sampling_config",
}


def __getattr__(name: str) -> Any:
    # Importing the package must cost nothing; the runtime pulls in onnxruntime and transformers.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("sts-export")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
