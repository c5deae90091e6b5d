"""Model families: config.json and weight names -> the four graphs.

A file of this folder with a ``FAMILY`` is a family; its name is the ``model_type`` of config.json.  Adding one means adding
that file (and, where its tower is new, one in towers/).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sts_export.discovery import members
from sts_export.errors import CheckpointError
from sts_export.families.family import Family


@cache
def families() -> dict[str, Family]:
    """Every family by its model_type, in alphabetical order."""
    return members(__name__, "FAMILY")


def family_of(config: dict[str, Any]) -> Family:
    """The family of a checkpoint's config.json.

    Raises:
        CheckpointError: an architecture without a family, or another class of model than the family's, with another head.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in families():
        supported = ", ".join(families())
        raise CheckpointError(f"unsupported architecture {model_type!r} in config.json; supported model types: {supported}")
    family = families()[model_type]
    classes = config.get("architectures") or [family.architecture]
    if not isinstance(classes, list) or family.architecture not in [str(name).removeprefix("FSDP") for name in classes]:
        raise CheckpointError(
            f"config.json says that the model is a {classes[0] if isinstance(classes, list) else classes}, but of "
            f"{model_type} only {family.architecture} is exported; give that model, or correct architectures"
        )
    return family


def aliases() -> dict[str, str]:
    """Short names of models -> their hub ids, of all families."""
    return {alias: hub_id for family in families().values() for alias, hub_id in family.aliases.items()}


def titles() -> str:
    """The families as people call them, for messages."""
    *most, last = (family.title for family in families().values())
    return f"{', '.join(most)} and {last}"


def image_processors() -> dict[str, str]:
    """Image processors of all families, as checkpoints name them -> transformers' class."""
    return {name: kind for family in families().values() for name, kind in family.image_processors.items()}
