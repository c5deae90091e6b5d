"""Sizes of outputs that follow from those of the inputs."""

from __future__ import annotations

from collections.abc import Mapping

from sts_export.graphs.contracts import GraphContract


def derived_sizes(contract: GraphContract, sizes: Mapping[str, int]) -> dict[str, int]:
    """Dimensions of outputs that no input has.

    Args:
        sizes: of the inputs' dimensions.
    """
    wanted = {size for spec in contract.outputs for size in spec.shape if isinstance(size, str)} - sizes.keys()
    made = {}
    if "kept" in wanted:
        made["kept"] = min(sizes["crops"] * sizes["steps"], sizes["tokens"])
    if "survivors" in wanted:
        made["survivors"] = sizes["sequence"] - sizes["visual"] + sizes["visual_keep"]
    return made
