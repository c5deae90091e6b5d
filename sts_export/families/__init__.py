"""Model families: config.json and weight names -> the four graphs.

A family is a module with three functions; adding one means adding a file and a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sts_export.errors import CheckpointError
from sts_export.families import llava
from sts_export.families.spec import ModelSpec

if TYPE_CHECKING:
    from sts_export.families.spec import Capacities, Graphs
    from sts_export.graphs.configs import Dtype
    from sts_export.graphs.contracts import GraphContract
    from sts_export.pruning import PruningConfig


@dataclass(frozen=True)
class Family:
    """How one model family is read.

    parse: config.json -> dimensions; raises CheckpointError for what the graphs cannot express
    canonical_name: a tensor's name in the files -> its name in the graphs
    unused_reason: why a tensor (canonical name) is deliberately not in any graph, or None
    build: the four graphs
    contracts: their inputs and outputs alone
    """

    parse: Callable[[dict[str, Any]], ModelSpec]
    canonical_name: Callable[[str], str]
    unused_reason: Callable[[str, ModelSpec], str | None]
    build: Callable[[ModelSpec, PruningConfig, Capacities, Dtype], Graphs]
    contracts: Callable[[ModelSpec, PruningConfig, Capacities, Dtype], dict[str, GraphContract]]


_FAMILIES = {
    "llava": Family(llava.parse, llava.canonical_name, llava.unused_reason, llava.build, llava.contracts),
}


def family_named(name: str) -> Family:
    """The family that a manifest names; KeyError for one that this version does not have."""
    return _FAMILIES[name]


def family_of(config: dict[str, Any]) -> Family:
    """The family of a checkpoint's config.json.

    Raises:
        CheckpointError: an architecture without a family.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        supported = ", ".join(sorted(_FAMILIES))
        raise CheckpointError(f"unsupported architecture {model_type!r} in config.json; supported model types: {supported}")
    return _FAMILIES[model_type]
