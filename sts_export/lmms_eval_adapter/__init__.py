"""A bundle as a chat model of lmms-eval: ``--model sts_export --model_args bundle=FOLDER``.

lmms-eval finds :func:`manifest` by the entry point group ``lmms_eval.models``.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What lmms-eval registers.  The class itself is imported when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="sts_export", chat_class_path="sts_export.lmms_eval_adapter.model.StsExportModel")
