"""Sizes of tensors that follow from a call's inputs and the contracts."""

from __future__ import annotations

from collections.abc import Mapping

from sts_export.graphs.contracts import GraphContract, TensorSpec

_FLOATS = ("float32", "float16", "bfloat16")


def own_inputs(contract: GraphContract) -> tuple[TensorSpec, ...]:
    """The inputs of a graph but for its caches."""
    caches = {before for before, _ in contract.caches}
    return tuple(spec for spec in contract.inputs if spec.name not in caches)


def own_outputs(contract: GraphContract) -> tuple[TensorSpec, ...]:
    """The outputs of a graph but for its caches."""
    caches = {after for _, after in contract.caches}
    return tuple(spec for spec in contract.outputs if spec.name not in caches)


def may_be_absent(spec: TensorSpec) -> bool:
    """One row of zeros stands for the visual rows of a prompt without pictures, and of a token."""
    return spec.dtype in _FLOATS and "visual" in spec.shape


def sizes_of(contract: GraphContract, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Symbolic dimension -> its size.

    Args:
        shapes: of inputs, by name.
    """
    return {
        symbol: size
        for spec in contract.inputs
        if spec.name in shapes
        for symbol, size in zip(spec.shape, shapes[spec.name], strict=True)
        if isinstance(symbol, str)
    }


def derived_sizes(contract: GraphContract, sizes: Mapping[str, int], *, patches_per_token: int) -> dict[str, int]:
    """Dimensions of outputs that no input has.

    Args:
        sizes: of the inputs' dimensions.
        patches_per_token: of a tower that takes any resolution.
    """
    wanted = {size for spec in contract.outputs for size in spec.shape if isinstance(size, str)} - sizes.keys()
    made = {}
    if "tokens" in wanted:
        made["tokens"] = sizes["patches"] // patches_per_token
    if "kept" in wanted:
        made["kept"] = min(sizes["crops"] * sizes["steps"], sizes["tokens"])
    if "survivors" in wanted:
        made["survivors"] = sizes["sequence"] - sizes["visual"] + sizes["visual_keep"]
    return made
