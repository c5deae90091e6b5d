"""Symbolic sizes of the contracts: their names by decoder part, and those that follow from others.

part     rows that enter it   visual rows among them
0        sequence             visual
1        survivors            visual_keep
2, ...   survivors_2, ...     visual_keep_2, ...
"""

from __future__ import annotations

from collections.abc import Mapping

from sts_export.graphs.contracts import GraphContract


def rows_of_part(index: int) -> str:
    """The size "rows that enter the ``index``-th part"."""
    return ("sequence", "survivors")[index] if index < 2 else f"survivors_{index}"


def visual_of_part(index: int) -> str:
    """The size "visual rows among them"."""
    return ("visual", "visual_keep")[index] if index < 2 else f"visual_keep_{index}"


def derived_sizes(contract: GraphContract, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of outputs that no input has, but that follow from those of the inputs.

    kept = min(crops * steps, tokens); survivors = sequence - visual + visual_keep, and likewise after every part that drops
    visual rows.  What follows from a tower's inputs, the tower knows.

    Args:
        contract: of the graph.
        sizes: of its inputs' symbolic dimensions.
    """
    found = {}
    wanted = {size for spec in contract.outputs for size in spec.shape if isinstance(size, str)} - sizes.keys()
    if "kept" in wanted:
        found["kept"] = min(sizes["crops"] * sizes["steps"], sizes["tokens"])
    for size in wanted:
        name, _, number = size.partition("_")
        if name == "survivors":
            after = int(number or 1)
            entered, visual = sizes[rows_of_part(after - 1)], sizes[visual_of_part(after - 1)]
            found[size] = entered - visual + sizes[visual_of_part(after)]
    return found
