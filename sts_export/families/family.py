"""What a family's file says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sts_export.families.build import Names
from sts_export.families.spec import ModelSpec


@dataclass(frozen=True)
class Family:
    """How one model family is read.

    Args:
        title: what people call it, and its parts where it has variants that are not exported.
        architecture: transformers' class of the whole model.
        parse: config.json and the image processor's settings -> dimensions; raises CheckpointError for what the graphs
            cannot express.
        canonical_name: a tensor's name in the files -> its name in the graphs.
        unused_reason: why a tensor (canonical name) is deliberately not in any graph, or None.
        names: prefixes of the parts.
        image_processors: what makes the vision tower's pictures, as checkpoints name it -> transformers' class that needs
            neither torch nor torchvision.  A checkpoint may add Fast or Pil to the name, or call it a feature extractor.
        aliases: short name -> hub id.
        limit_tokens: settings under which pictures have at most so many visual tokens, in families that take any resolution.
    """

    title: str
    architecture: str
    parse: Callable[[dict[str, Any], dict[str, Any]], ModelSpec]
    canonical_name: Callable[[str], str]
    unused_reason: Callable[[str, ModelSpec], str | None]
    names: Names
    image_processors: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    limit_tokens: Callable[[dict[str, Any], int], dict[str, Any]] | None = None
