"""TensorRT for RTX on a machine without a GPU: parse a bundle's graphs, look into the network, build the engine.

Register no plugins here: tensorrt-rtx 1.7.1 aborts the process when it is given one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt

from sts_export.bundle.manifest import Manifest
from sts_export.graphs.contracts import TensorSpec
from sts_export.tensorrt.profiles import Profile
from sts_export.tensorrt.profiles import profiles as builder_profiles

# TensorRT's types of the contracts' dtypes.
DTYPES = {
    "float32": trt.DataType.FLOAT,
    "float16": trt.DataType.HALF,
    "bfloat16": trt.DataType.BF16,
    "int64": trt.DataType.INT64,
    "bool": trt.DataType.BOOL,
}
# The most requests that the engines of the tests are built for.
MAX_BATCH = 2


class _Log(trt.ILogger):  # type: ignore[misc]
    """Keeps what is worse than a warning."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)


@dataclass
class Parsed:
    """A parsed graph; holds what the network must not outlive."""

    network: Any
    builder: Any
    parser: Any
    log: _Log
    attentions: list[Any] = field(default_factory=list)

    @property
    def layers(self) -> list[Any]:
        return [self.network.get_layer(index) for index in range(self.network.num_layers)]

    @property
    def inputs(self) -> list[Any]:
        return [self.network.get_input(index) for index in range(self.network.num_inputs)]

    @property
    def outputs(self) -> list[Any]:
        return [self.network.get_output(index) for index in range(self.network.num_outputs)]

    def count(self) -> Counter[str]:
        """Layer type -> number of layers."""
        return Counter(str(layer.type).removeprefix("LayerType.") for layer in self.layers)

    def cache_updates(self) -> list[tuple[str, str]]:
        """(cache input, updated cache) of every KV-cache update layer, in network order."""
        updates = [layer for layer in self.layers if layer.type == trt.LayerType.KV_CACHE_UPDATE]
        return [(layer.get_input(0).name, layer.get_output(0).name) for layer in updates]

    def masked(self, name: str) -> list[bool]:
        """Of every attention layer: does it have a mask of its own that depends on network input ``name``?"""
        reached = self._reached(name)
        no_causal = trt.CausalMaskKind.NONE
        return [
            attention.causal_kind == no_causal and attention.mask is not None and attention.mask.name in reached
            for attention, _ in self.attentions
        ]

    def reachable_outputs(self, name: str) -> set[str]:
        """The network outputs that depend on network input ``name``."""
        return self._reached(name) & {tensor.name for tensor in self.outputs}

    def _reached(self, name: str) -> set[str]:
        consumers: dict[str, list[Any]] = defaultdict(list)
        for layer in self.layers:
            for index in range(layer.num_inputs):
                if (tensor := layer.get_input(index)) is not None:
                    consumers[tensor.name].append(layer)
        for attention, layer in self.attentions:
            if attention.mask is not None:
                consumers[attention.mask.name].append(layer)
        found, waiting = {name}, [name]
        while waiting:
            for layer in consumers[waiting.pop()]:
                names = {layer.get_output(index).name for index in range(layer.num_outputs)}
                waiting += names - found
                found |= names
        return found


def parse(file: Path, *, decomposable: bool = False) -> Parsed:
    """Parse a graph from its folder, where its external weights lie, as a user's TensorRT does.

    Args:
        file: a graph of a bundle with copied weights.
        decomposable: allow attention to be built from primitive operators; float32 has no fused kernel and needs that.

    ``get_layer`` returns the base class: TensorRT's Python API wants the derived class assigned to get at the rest.
    """
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    done = parser.parse_from_file(str(file))
    errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
    if not done or errors or log.errors:
        raise AssertionError(f"TensorRT-RTX does not parse {file.name}: {[*errors, *log.errors][:3]}")
    parsed = Parsed(network, builder, parser, log)
    for layer in parsed.layers:
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = decomposable
            parsed.attentions.append((layer.attention, layer))
    return parsed


def build(parsed: Parsed, profiles: list[Profile]) -> bytes:
    """Build the engine for these profiles of the inputs' dimensions."""
    config = parsed.builder.create_builder_config()
    for sizes in profiles:
        profile = parsed.builder.create_optimization_profile()
        for tensor in parsed.inputs:
            names = [tensor.get_dimension_name(axis) for axis in range(len(tensor.shape))]
            if any(size == -1 for size in tensor.shape):
                shapes = [
                    [size if size != -1 else sizes[name][which] for size, name in zip(tensor.shape, names, strict=True)]
                    for which in range(3)
                ]
                profile.set_shape(tensor.name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise AssertionError(f"TensorRT-RTX refuses the profile {sizes}: {parsed.log.errors}")
    engine = parsed.builder.build_serialized_network(parsed.network, config)
    if engine is None:
        raise AssertionError(f"TensorRT-RTX does not build it: {parsed.log.errors[:3]}")
    return bytes(engine)


def profiles(manifest: Manifest, name: str) -> list[Profile]:
    """The builder's own profiles, for small batches."""
    return builder_profiles(manifest, name, MAX_BATCH)


def describe(tensor: Any) -> TensorSpec:
    """A network tensor as a contract would write it."""
    dtype = {found: name for name, found in DTYPES.items()}[tensor.dtype]
    shape = tuple(tensor.get_dimension_name(axis) if size == -1 else size for axis, size in enumerate(tuple(tensor.shape)))
    return TensorSpec(tensor.name, shape, dtype)
