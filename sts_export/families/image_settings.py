"""The image processor's settings as transformers reads them.

preprocessor_config.json files have ``min_pixels`` and ``max_pixels`` beside ``size``, a crop as a number or as height and
width, or nothing where the value is a default; transformers' own classes decide what counts.  Source: transformers
``image_processing_base.py`` and ``models/*/image_processing_pil_*.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sts_export.errors import CheckpointError
from sts_export.torch_advice import hide_torch_advice


def read_image_settings(settings: Mapping[str, Any], kind: str) -> Any:
    """transformers' image processor of these settings, which has every setting as an attribute.

    Args:
        kind: transformers' name of a processor that needs no torch.

    Raises:
        CheckpointError: transformers refuses the settings.
    """
    hide_torch_advice()
    import transformers

    try:
        return getattr(transformers, kind).from_dict(dict(settings))
    except Exception as error:  # transformers raises many kinds of errors on wrong settings
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"the image processor's settings do not work ({text}); restore the model's own preprocessor_config.json"
        ) from None
