"""What the builder uses of the Python module ``tensorrt``, which needs a GPU even to parse; it records what it is given.

Names and signatures: TensorRT's Python API, https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import onnx

from sts_export.testing.fakes.tensorrt_enums import ILogger


@dataclass
class FakeTensorRT:
    """A module; ``loads`` says whether its registry accepts libraries, ``parses`` and ``builds`` whether the steps succeed."""

    version: str = "10.16.1.11"
    loads: bool = True
    parses: bool = True
    builds: bool = True
    cache_fits: bool = True
    events: list[str] = field(default_factory=list)
    creators: set[tuple[str, str, str]] = field(default_factory=set)
    graph: onnx.ModelProto | None = None
    path: str = ""
    flags: int = -1
    profiles: list[dict[str, tuple[tuple[int, ...], ...]]] = field(default_factory=list)
    caches: list[bytes] = field(default_factory=list)
    set_flags: set[str] = field(default_factory=lambda: {"TF32"})  # what TensorRT sets by itself
    attention: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(decomposable=False))
    settings: SimpleNamespace = field(default_factory=SimpleNamespace)

    def module(self) -> Any:
        new = tuple(int(part) for part in self.version.split(".")[:2]) >= (10, 14)
        return SimpleNamespace(
            __version__=self.version,
            ILogger=ILogger,
            IProgressMonitor=object,
            Builder=lambda logger: Builder(self, logger),
            OnnxParser=lambda network, logger: Parser(self, logger),
            NetworkDefinitionCreationFlag=SimpleNamespace(**({"STRONGLY_TYPED": 1} if self.version < "11" else {})),
            LayerType=SimpleNamespace(**({"ATTENTION_INPUT": 52} if new else {})),
            BuilderFlag=SimpleNamespace(TF32="TF32"),
            IAttentionInputLayer=_AttentionLayer,
            MemoryPoolType=SimpleNamespace(WORKSPACE=0),
            get_plugin_registry=lambda: Registry(self),
        )


class Registry:
    def __init__(self, owner: FakeTensorRT) -> None:
        self.owner = owner

    def get_creator(self, type: str, version: str, plugin_namespace: str) -> Any:
        return object() if (type, version, plugin_namespace) in self.owner.creators else None

    def load_library(self, plugin_path: str) -> Any:
        self.owner.events.append(f"load {plugin_path}")
        if self.owner.loads:
            self.owner.creators |= {("RepulsionSelect", "1", "sts"), ("LastTokenTopK", "1", "sts")}
            return object()
        return None


class Parser:
    def __init__(self, owner: FakeTensorRT, logger: Any) -> None:
        self.owner, self.logger = owner, logger
        self.num_errors = 0

    def parse(self, model: bytes, path: str) -> bool:
        self.owner.events.append("parse")
        self.owner.graph, self.owner.path = onnx.load_from_string(model), path
        if not self.owner.parses:
            self.num_errors = 1
        return self.owner.parses

    def get_error(self, index: int) -> str:
        return "In node 7 with name: x and operator: Attention\n(parseNode): UNSUPPORTED_NODE"


class Builder:
    def __init__(self, owner: FakeTensorRT, logger: Any) -> None:
        self.owner, self.logger = owner, logger

    def create_network(self, flags: int) -> Any:
        self.owner.flags = flags
        if tuple(int(part) for part in self.owner.version.split(".")[:2]) < (10, 14):
            return SimpleNamespace(num_layers=1, get_layer=lambda index: _Layer(0))
        layers = [_Layer(0), _Layer(52)]
        layers[1].attention_of = self.owner.attention
        return SimpleNamespace(num_layers=2, get_layer=layers.__getitem__)

    def create_builder_config(self) -> Any:
        return Config(self.owner)

    def create_optimization_profile(self) -> Any:
        sizes: dict[str, tuple[tuple[int, ...], ...]] = {}
        return SimpleNamespace(set_shape=lambda name, *shapes: sizes.update({name: shapes}), sizes=sizes)

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        self.owner.events.append("build")
        if not self.owner.builds:
            self.logger.log(ILogger.WARNING, "a detail")
            self.logger.log(ILogger.ERROR, "[optimizer] Could not find any implementation\nfor node {Attention}")
            return None
        config.progress_monitor.phase_start("Building engine", None, 2)
        config.progress_monitor.phase_start("Tactics", "Building engine", 5)
        config.progress_monitor.step_complete("Tactics", 0)
        config.progress_monitor.step_complete("Building engine", 0)
        config.progress_monitor.phase_finish("Tactics")
        config.progress_monitor.phase_finish("Building engine")
        return b"engine"


class _Layer:
    """As get_layer returns it: without what its kind has."""

    def __init__(self, kind: int) -> None:
        self.type = kind
        self.attention_of: Any = None


class _AttentionLayer(_Layer):
    @property
    def attention(self) -> Any:
        return self.attention_of


class Config:
    def __init__(self, owner: FakeTensorRT) -> None:
        self.owner = owner
        self.progress_monitor: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "builder_optimization_level":
            self.owner.settings.level = value
        object.__setattr__(self, name, value)

    def set_flag(self, flag: str) -> None:
        self.owner.set_flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.owner.set_flags.discard(flag)

    def set_memory_pool_limit(self, pool: int, pool_size: int) -> None:
        self.owner.settings.workspace = pool_size

    def add_optimization_profile(self, profile: Any) -> int:
        self.owner.profiles.append(profile.sizes)
        return len(self.owner.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        self.owner.caches.append(serialized_timing_cache)
        return serialized_timing_cache

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return self.owner.cache_fits or cache == b""

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"timings")
