"""config.json as transformers reads it.

Keys have been renamed over the years (``rope_scaling`` and ``rope_parameters``, ``image_token_index`` and
``image_token_id``), and files hold both spellings, or neither where the value is a default.  transformers' own configuration
classes decide which one counts.  Source: transformers ``configuration_utils.py``, ``modeling_rope_utils.py`` and
``models/*/configuration_*.py``.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sts_export.errors import CheckpointError
from sts_export.torch_advice import hide_torch_advice

_PARTS = ("text_config", "vision_config")
# They do not change the graphs, and transformers makes more of them than their text says: a list of num_labels names, or a
# torch.dtype where torch is installed.
_LEFT_OUT = ("num_labels", "id2label", "label2id", "dtype", "torch_dtype")
# transformers makes lists of this length before anything is checked.
_COUNTS = ("num_hidden_layers", "depth")
_MOST_LAYERS = 1024


def read_config(config: Mapping[str, Any]) -> Any:
    """The configuration object that transformers makes of config.json; ``config`` is left as it is.

    Args:
        config: content of config.json, with a ``model_type`` that transformers knows.

    Raises:
        CheckpointError: a part that is no object, a value that transformers refuses, or a setting that leads elsewhere.
    """
    for name in ("configuration_files", "per_layer_config"):
        for holder in (config, *(part(config, name) for name in _PARTS)):
            require(not holder.get(name), name, holder.get(name))
    settings = _without_irrelevant({key: value for key, value in config.items() if key not in _PARTS})
    for name in _PARTS:
        if config.get(name) is not None:
            settings[name] = _without_irrelevant(part(config, name))
    for holder in (settings, *(settings.get(name, {}) for name in _PARTS)):
        for name in _COUNTS:
            if isinstance(holder.get(name), int) and holder[name] > _MOST_LAYERS:
                raise impossible(ValueError(f"{name} {holder[name]} is not between 1 and {_MOST_LAYERS}"))
    hide_torch_advice()
    from transformers import CONFIG_MAPPING

    with _without_remarks():
        try:
            return CONFIG_MAPPING[config["model_type"]].from_dict(settings)
        except Exception as error:  # each class has its own checks, and its own errors
            raise impossible(error) from None


def part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A nested object of config.json, empty where it is missing.

    Raises:
        CheckpointError: something else stands there.
    """
    value = config.get(name) or {}
    require(isinstance(value, dict), name, value)
    return dict(value)


def require(condition: bool, what: str, value: object) -> None:
    """Raises CheckpointError for a setting that the graphs do not express."""
    if not condition:
        from sts_export.families import titles  # here: families' files import this one

        raise CheckpointError(f"unsupported {what} {value!r} in config.json; sts-export exports {titles()}")


def impossible(error: Exception) -> CheckpointError:
    """For values of config.json that no model has."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(f"config.json has an impossible value ({text}); download or copy it again")


def _without_irrelevant(settings: Mapping[str, Any]) -> dict[str, Any]:
    # A copy: the classes write into the objects they are given.
    return copy.deepcopy({key: value for key, value in settings.items() if key not in _LEFT_OUT})


@contextmanager
def _without_remarks() -> Iterator[None]:
    """transformers logs what it finds odd and warns of old keys; what matters here is refused in one line."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
