"""Model families: config.json and weight names -> the four graphs.

A family is a module with a few functions and the names of its parts; adding one means adding a file and a line here (and,
where its pictures become tokens in a new way, a file in media).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sts_export.checkpoints.checkpoint import Checkpoint
from sts_export.errors import CheckpointError
from sts_export.families import llava, llava_next, qwen2_5_vl
from sts_export.families.build import Names
from sts_export.families.spec import ModelSpec


@dataclass(frozen=True)
class Family:
    """How one model family is read.

    architecture: transformers' class of the whole model
    parse: config.json and the image processor's settings -> dimensions; raises CheckpointError for what the graphs cannot
        express
    canonical_name: a tensor's name in the files -> its name in the graphs
    unused_reason: why a tensor (canonical name) is deliberately not in any graph, or None
    names: prefixes of the parts
    image_processors: transformers' image processors that make what the vision tower takes
    check_processor: raises CheckpointError where the image processor's settings do not fit the vision tower
    limit_tokens: settings under which pictures have at most so many visual tokens, in families that take any resolution
    """

    architecture: str
    parse: Callable[[dict[str, Any], dict[str, Any]], ModelSpec]
    canonical_name: Callable[[str], str]
    unused_reason: Callable[[str, ModelSpec], str | None]
    names: Names
    image_processors: tuple[str, ...]
    check_processor: Callable[[Checkpoint, dict[str, Any], ModelSpec], None]
    limit_tokens: Callable[[dict[str, Any], int, ModelSpec], dict[str, Any]] | None = None


FAMILIES = {
    "llava": Family(
        "LlavaForConditionalGeneration",
        llava.parse,
        llava.canonical_name,
        llava.unused_reason,
        llava.NAMES,
        ("CLIPImageProcessor",),
        llava.check_processor,
    ),
    "llava_next": Family(
        "LlavaNextForConditionalGeneration",
        llava_next.parse,
        llava_next.canonical_name,
        llava_next.unused_reason,
        llava_next.NAMES,
        ("LlavaNextImageProcessor",),
        llava_next.check_processor,
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        qwen2_5_vl.parse,
        qwen2_5_vl.canonical_name,
        qwen2_5_vl.unused_reason,
        qwen2_5_vl.NAMES,
        ("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor"),
        qwen2_5_vl.check_processor,
        qwen2_5_vl.limit_image_tokens,
    ),
}


def family_of(config: dict[str, Any]) -> Family:
    """The family of a checkpoint's config.json.

    Raises:
        CheckpointError: an architecture without a family, or another class of model than the family's, with another head.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise CheckpointError(f"unsupported architecture {model_type!r} in config.json; supported model types: {supported}")
    family = FAMILIES[model_type]
    classes = config.get("architectures") or [family.architecture]
    if not isinstance(classes, list) or family.architecture not in [str(name).removeprefix("FSDP") for name in classes]:
        raise CheckpointError(
            f"config.json says that the model is a {classes[0] if isinstance(classes, list) else classes}, but of "
            f"{model_type} only {family.architecture} is exported; give that model, or correct architectures"
        )
    return family
