"""Pipelines on the fake TensorRT, in the flavours that differ."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export import Pipeline
from sts_export.backends.cuda_runtime import Cuda
from sts_export.backends.tensorrt.backend import TensorRtBackend
from sts_export.bundle.manifest import open_bundle
from sts_export.graphs.decoder.parts import decoder_parts
from sts_export.requests.feeds import decode_feeds
from sts_export.tensorrt.record import EngineSet
from sts_export.testing.fakes import tensorrt
from sts_export.testing.fakes.cuda import FakeCuda
from sts_export.testing.fakes.engines import VERSIONS, write_engines

NEW_TOKENS = 12


@dataclass(frozen=True)
class Flavour:
    """A runtime and a version of it, and whether its engines write caches in place."""

    runtime: str
    version: str
    aliased: bool

    def __str__(self) -> str:
        return f"{self.runtime}-{self.version.split('.')[0]}.{self.version.split('.')[1]}"

    @property
    def copies(self) -> int:
        """Buffers for each cache."""
        return 1 if self.aliased else 2


NEW = Flavour("tensorrt", VERSIONS["tensorrt"], True)
RTX = Flavour("tensorrt-rtx", VERSIONS["tensorrt-rtx"], True)
OLD = Flavour("tensorrt", "10.3.0.26", False)  # without IKVCacheUpdateLayer
FLAVOURS = (NEW, RTX, OLD)


@dataclass
class Opened:
    """A backend on fakes."""

    backend: TensorRtBackend
    device: FakeCuda
    engines: EngineSet
    folder: Path

    def pipeline(self) -> Pipeline:
        """A pipeline of the bundle that runs on this backend."""
        pipeline = Pipeline(self.folder, threads=1)
        pipeline._backend = pipeline._graphs._backend = self.backend
        return pipeline

    def runs(self, graph: str) -> dict[int, int]:
        """Executions of one engine by profile."""
        return next(
            dict(engine._engine.counts) for name, engine in self.backend._engines.items() if name == graph
        )  # the fake's own count


def open_on(
    bundle: Path,
    flavour: Flavour = NEW,
    *,
    device: FakeCuda | None = None,
    max_batch: int = 8,
    **plan: Any,
) -> Opened:
    """The bundle on a fresh fake device; ``plan`` as for write_engines."""
    opened, device = open_bundle(bundle), device or FakeCuda()
    engines = write_engines(
        opened,
        Path(tempfile.mkdtemp(dir=bundle.parent, prefix="engines-")),
        runtime=flavour.runtime,
        version=flavour.version,
        max_batch=max_batch,
        aliased=flavour.aliased,
        **plan,
    )
    return Opened(open_backend(engines, bundle, device), device, engines, bundle)


def open_backend(engines: EngineSet, bundle: Path, device: FakeCuda) -> TensorRtBackend:
    """The engines of a folder, by the module that they are for."""
    record = engines.record
    module = tensorrt.module(record.runtime.replace("-", "_"), record.tensorrt)
    return TensorRtBackend(open_bundle(bundle), engines, module, Cuda(device))


def check_nothing_left(device: FakeCuda) -> None:
    assert device.problems == []
    assert (device.live(True), device.live(False), device.live_graphs()) == (0, 0, 0)


def flavour_of(opened: Opened) -> Flavour:
    return next(one for one in FLAVOURS if one.version == opened.engines.record.tensorrt)


def token_feeds(
    ids: Sequence[int], lower: Sequence[int], upper: Sequence[int], *, positions_fed: bool = False, mrope: bool = False
) -> dict[str, dict[str, NDArray[np.int64]]]:
    """One token of every slot; its rotary position is its cache row.

    Args:
        lower, upper: cache rows.
        positions_fed: the upper part's, too; else they are passed on.
    """
    rows = [np.array(lower), np.array(upper)]
    return decode_feeds(
        decoder_parts(2, (1,)), np.array(ids), rows, rows, mrope=mrope, survivors_keep_positions=not positions_fed
    )
