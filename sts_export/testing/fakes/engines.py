"""Engine files of the fake TensorRT for a bundle, with the record that ``sts-export build`` would write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sts_export.bundle.manifest import Bundle
from sts_export.bundle.records import record_file
from sts_export.tensorrt.profiles import profiles, shapes
from sts_export.tensorrt.record import (
    BuildRecord,
    EngineRecord,
    EngineSet,
    bundle_digest,
    engines_folder,
    this_platform,
    write_record,
)
from sts_export.testing.fakes.tensorrt import MAGIC

VERSIONS = {"tensorrt": "11.1.0.106", "tensorrt-rtx": "1.7.1.116"}
ACTIVATIONS = 1 << 16


def write_engines(
    bundle: Bundle,
    folder: Path | None = None,
    *,
    runtime: Any = "tensorrt",
    version: str | None = None,
    max_batch: int = 2,
    aliased: bool = True,
    **plan: Any,
) -> EngineSet:
    """ "Build" all four.

    Args:
        folder: for them; None is where the builder puts them.
        plan: overrides of what the fake reads: capturable, activations, locations, fails, no_context.
    """
    version = version or VERSIONS[runtime]
    folder = folder or engines_folder(bundle, runtime, "fake")
    folder.mkdir(parents=True, exist_ok=True)
    vision = bundle.manifest.model.vision
    records = {}
    for index, name in enumerate(bundle.manifest.graphs):
        contract = bundle.manifest.graphs[name]
        built = profiles(bundle.manifest, name, max_batch)
        content = {
            "magic": MAGIC,
            "version": version,
            "graph": str(bundle.graph_file(name).resolve()),
            "weights": str(bundle.weights_folder.resolve()),
            "profiles": [{spec.name: shapes(spec, profile) for spec in contract.inputs} for profile in built],
            "caches": {after: before for before, after in contract.caches},
            "aliased": aliased,
            "patches_per_token": getattr(vision, "merge_size", 1) ** 2,
            "activations": ACTIVATIONS // (len(bundle.manifest.graphs) - index),  # the last one needs most
            "capturable": True,
            "locations": {},
            "fails": "",
            "no_context": False,
            **plan,
        }
        file = folder / f"{name}.engine"
        file.write_text(json.dumps(content))
        written = record_file(file)
        assert written.sha256 is not None
        records[name] = EngineRecord(
            file=file.name,
            size=written.size,
            sha256=written.sha256,
            key="",
            seconds=0.0,
            aliased_caches=aliased,
            plugins=False,
            decomposed_attention=False,
        )
    record = BuildRecord(
        runtime=runtime,
        tensorrt=version,
        target="fake",
        gpu=None,
        platform=this_platform(),
        bundle=bundle_digest(bundle),
        max_batch=max_batch,
        plugins=None,
        graphs=records,
    )
    write_record(folder, record)
    return EngineSet(folder, record)


def alter_plan(engines: EngineSet, graph: str, **changes: Any) -> Path:
    """Change what one engine file says."""
    file = engines.file(graph)
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return file
