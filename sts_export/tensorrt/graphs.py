"""`sts-export build --graphs-only`: the graphs as a given TensorRT takes them, and commands that build them elsewhere.

    BUNDLE/<graph>.tensorrt-10.3.onnx          beside the weights
    BUNDLE/engines/commands-tensorrt-10.3.sh   trtexec and Polygraphy
    BUNDLE/engines/polygraphy/                 inputs for the comparison

Needs neither TensorRT nor a GPU.  The graphs cannot go into engines/ too: TensorRT's parser takes external weights from the
folder of the graph only.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sts_export.bundle import GRAPHS, Bundle, open_bundle
from sts_export.errors import OutputError, RequestError
from sts_export.paths import user_path
from sts_export.tensorrt.commands import CommandPlan, script
from sts_export.tensorrt.files import replace_file
from sts_export.tensorrt.lowering import lower
from sts_export.tensorrt.module import Runtime, graph_version, installed, load, parse_version, version_of
from sts_export.tensorrt.options import check_options
from sts_export.tensorrt.plugins import HOW_TO_GET_IT, LIBRARY, NAMESPACE, VERSION
from sts_export.tensorrt.record import ENGINES
from sts_export.tensorrt.sample import FOLDER, write_inputs

OLDEST, NEWEST = (10, 3), (11, 1)

_WITH_PLUGINS = f'''"""The inputs of inputs.py, for engines that need {LIBRARY}.

Polygraphy's --plugins only opens a library; this one's plugins have to be loaded into TensorRT's registry.
"""

from pathlib import Path

import tensorrt
from inputs import *

_registry = tensorrt.get_plugin_registry()
if _registry.get_creator("RepulsionSelect", "{VERSION}", "{NAMESPACE}") is None:
    _registry.load_library(str(Path(__file__).resolve().parents[2] / "{LIBRARY}"))
'''


@dataclass(frozen=True)
class GraphsRequest:
    """What to write.

    Args:
        bundle: folder.
        runtime: TensorRT for RTX takes the bundle's own graphs, and only the commands are written.
        version: of TensorRT, such as ``10.3``; None: the installed one, else the newest known.
        plugins: library to put into the bundle; it is for the machine that builds, not for this one.
        use_plugins: False keeps the pruning stages as standard operators.
        max_batch: requests that may run together.
        optimization_level, workspace_mb: as for `sts-export build`.
    """

    bundle: str | Path
    runtime: Runtime = "tensorrt"
    version: str | None = None
    plugins: str | None = None
    use_plugins: bool = True
    max_batch: int = 1
    optimization_level: int | None = None
    workspace_mb: int | None = None


@dataclass(frozen=True)
class GraphsReport:
    """What was written.

    Args:
        version: of TensorRT; None for TensorRT for RTX.
        graphs: file in the bundle folder that TensorRT takes, of each graph.
        commands: file in the bundle folder.
        plugins: the graphs need the plugin library.
        aliased_caches: cache outputs are bound to the address of their inputs; else a runtime swaps two buffers.
    """

    bundle: str
    runtime: Runtime
    version: str | None
    graphs: dict[str, str]
    commands: str
    plugins: bool
    aliased_caches: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def write_graphs(request: GraphsRequest) -> GraphsReport:
    """Write graphs and commands for one version of TensorRT; those of other versions stay.

    Raises:
        RequestError: an unknown version, or a bundle that TensorRT cannot take.
        OutputError: the bundle cannot be written to.
    """
    bundle = open_bundle(request.bundle)
    _check(request, bundle)
    version = _version(request)
    library = None if request.plugins is None else _given(request.plugins)
    try:
        if library is not None and library != (bundle.folder / LIBRARY).resolve():
            shutil.copyfile(library, bundle.folder / LIBRARY)
        return _write(bundle, request, version)
    except OSError as error:
        raise OutputError(f"cannot write to {bundle.folder}: {error.strerror}; make the bundle writable") from None


def _write(bundle: Bundle, request: GraphsRequest, version: tuple[int, int]) -> GraphsReport:
    rtx = request.runtime == "tensorrt-rtx"
    plugins = request.use_plugins and not rtx
    text = "{}.{}".format(*version)
    files, aliased = {}, True
    for name in GRAPHS:
        graph = bundle.graph_file(name)
        if rtx:
            files[name] = graph.name
            continue
        lowered = lower(graph.read_bytes(), version, plugins=plugins)
        aliased = aliased and lowered.aliased_caches
        files[name] = f"{graph.stem}.tensorrt-{text}.onnx"
        replace_file(bundle.folder / files[name], lowered.graph)
    plan = CommandPlan(
        runtime=request.runtime,
        version=version,
        graphs=files,
        plugins=plugins,
        max_batch=request.max_batch,
        optimization_level=request.optimization_level,
        workspace_mb=request.workspace_mb,
    )
    commands = _write_commands(bundle, plan)
    return GraphsReport(
        bundle=str(bundle.folder),
        runtime=request.runtime,
        version=None if rtx else text,
        graphs=files,
        commands=str(commands.relative_to(bundle.folder)),
        plugins=plugins,
        aliased_caches=aliased,
    )


def _write_commands(bundle: Bundle, plan: CommandPlan) -> Path:
    folder = bundle.folder / ENGINES
    folder.mkdir(exist_ok=True)
    refusal = _write_inputs(bundle)
    if refusal is None and plan.plugins:
        (folder / FOLDER / "with_plugins.py").write_text(_WITH_PLUGINS, encoding="utf-8")
    file = folder / f"commands-{plan.label}.sh"
    replace_file(file, script(bundle, plan, refusal).encode())
    file.chmod(0o755)
    return file


def _write_inputs(bundle: Bundle) -> str | None:
    """Why there are none; None if there are.  Engines can be built all the same."""
    if bundle.manifest.dtype == "bfloat16":
        return "ONNX Runtime on CPU cannot run bfloat16; compare a bundle with --dtype float16"
    try:
        write_inputs(bundle)
    except RequestError as error:
        return f"no prompt of ours fits this bundle: {error}"
    return None


def _check(request: GraphsRequest, bundle: Bundle) -> None:
    check_options(
        bundle,
        max_batch=request.max_batch,
        optimization_level=request.optimization_level,
        workspace_mb=request.workspace_mb,
        plugins=request.plugins,
        use_plugins=request.use_plugins,
    )
    if bundle.manifest.weights.mode == "link":
        raise RequestError(
            f"{bundle.folder} links to its weights, and TensorRT's parser takes weights only from the folder of the graph; "
            "export with --weights copy"
        )
    if request.runtime == "tensorrt-rtx" and (request.version is not None or request.plugins is not None):
        raise RequestError(
            "TensorRT for RTX takes the bundle's own graphs and no plugins; "
            "leave --tensorrt-version and --plugins out or choose --runtime tensorrt"
        )


def _version(request: GraphsRequest) -> tuple[int, int]:
    if request.runtime == "tensorrt-rtx":
        return graph_version("tensorrt-rtx", "")
    if request.version is None:
        return parse_version(version_of(load("tensorrt"))) if "tensorrt" in installed() else NEWEST
    version = parse_version(request.version)
    if version < OLDEST:
        raise RequestError(
            f"TensorRT {request.version} is too old: graphs are for 10.3 and later; give a newer --tensorrt-version"
        )
    return version


def _given(plugins: str) -> Path:
    file = user_path(plugins)
    if not file.is_file():
        raise RequestError(f"there is no plugin library {file}; {HOW_TO_GET_IT}, or leave --plugins out")
    return file.resolve()


def summary(report: GraphsReport) -> str:
    """What was written, for people."""
    lines = [f"{report.bundle}: commands for {report.runtime}{f' {report.version}' if report.version else ''}"]
    lines += [f"  {name:<15}{file}" for name, file in report.graphs.items()]
    lines.append(f"  build there: bash {report.commands} build; compare with ONNX Runtime: bash {report.commands} compare")
    if report.plugins:
        lines.append(f"  needs {LIBRARY} in the bundle, built on the machine that builds the engines (or use --no-plugins)")
    if not report.aliased_caches:
        lines.append("  caches are new tensors in every call: bind two buffers of each and swap them")
    return "\n".join(lines)
