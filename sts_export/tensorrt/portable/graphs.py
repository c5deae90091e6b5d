"""`sts-export build --graphs-only`: the graphs as a given TensorRT takes them, and commands that build them elsewhere.

    BUNDLE/<graph>.tensorrt-10.3.onnx          beside the weights
    BUNDLE/engines/commands-tensorrt-10.3.sh   trtexec and Polygraphy
    BUNDLE/engines/polygraphy/                 inputs for the comparison

Needs neither TensorRT nor a GPU.  The graphs cannot go into engines/ too: TensorRT's parser takes external weights from the
folder of the graph only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.errors import OutputError, RequestError
from sts_export.files import replace_files
from sts_export.lowering.tensorrt import lower
from sts_export.native.elf import MACHINES, machine_of
from sts_export.paths import user_path
from sts_export.tensorrt.build_options import check_options
from sts_export.tensorrt.plugins import HOW_TO_GET_IT, LIBRARY, NAMES, NAMESPACE, VERSION
from sts_export.tensorrt.portable.commands import CommandPlan, script
from sts_export.tensorrt.portable.sample_inputs import FOLDER, write_inputs
from sts_export.tensorrt.record import ENGINES
from sts_export.tensorrt.runtimes import Runtime, graph_version, installed, load, parse_version, version_of

OLDEST, NEWEST = (10, 3), (11, 1)
_INPUTS = ("inputs.py", "inputs.json", "inputs.npz", "with_plugins.py")

_WITH_PLUGINS = f'''"""The inputs of inputs.py, for engines that need {LIBRARY}.

Polygraphy's --plugins only opens a library; this one's plugins have to be loaded into TensorRT's registry.
"""

from pathlib import Path

import tensorrt
from inputs import __getattr__

_registry = tensorrt.get_plugin_registry()
if _registry.get_creator("{NAMES[0]}", "{VERSION}", "{NAMESPACE}") is None:
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
        library: the machine, ``x86-64`` or ``aarch64``, of the plugin library that was given; None if none was.
        notes: what a user should know besides.
    """

    bundle: str
    runtime: Runtime
    version: str | None
    graphs: dict[str, str]
    commands: str
    plugins: bool
    aliased_caches: bool
    library: str | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def write_graphs(request: GraphsRequest) -> GraphsReport:
    """Write graphs and commands for one version of TensorRT; those of other versions stay.

    Raises:
        RequestError: an unknown version, a file that is no plugin library, or a bundle that TensorRT cannot take.
        OutputError: the bundle cannot be written to; nothing new is left in it.
    """
    bundle = open_bundle(request.bundle)
    _check(request, bundle)
    version = _version(request)
    contents: dict[Path, bytes] = {}
    machine = None
    if request.plugins is not None:
        library, machine = _read_plugins(request.plugins)
        contents[bundle.folder / LIBRARY] = library
    files, aliased = _lowered(bundle, request, version, contents)
    plan = CommandPlan(
        runtime=request.runtime,
        version=version,
        graphs=files,
        plugins=request.use_plugins and request.runtime == "tensorrt",
        max_batch=request.max_batch,
        optimization_level=request.optimization_level,
        workspace_mb=request.workspace_mb,
    )
    try:
        commands = _write(bundle, plan, contents)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write to {bundle.folder}: {reason}; check disk and permissions") from None
    text = "{}.{}".format(*version)
    newer = f"TensorRT {text} is newer than {{}}.{{}}, the newest version known; graphs are as for that one".format(*NEWEST)
    return GraphsReport(
        bundle=str(bundle.folder),
        runtime=request.runtime,
        version=text if request.runtime == "tensorrt" else None,
        graphs=files,
        commands=str(commands.relative_to(bundle.folder)),
        plugins=plan.plugins,
        aliased_caches=aliased,
        library=machine,
        notes=(newer,) if version > NEWEST else (),
    )


def _lowered(
    bundle: Bundle, request: GraphsRequest, version: tuple[int, int], contents: dict[Path, bytes]
) -> tuple[dict[str, str], bool]:
    """File of each graph, and whether all of them alias their caches; adds to ``contents`` what has to be written."""
    files, aliased = {}, True
    for name in bundle.manifest.graphs:
        graph = bundle.graph_file(name)
        if request.runtime == "tensorrt-rtx":
            files[name] = graph.name
            continue
        lowered = lower(graph.read_bytes(), version, plugins=request.use_plugins)
        aliased = aliased and lowered.aliased_caches
        files[name] = "{}.tensorrt-{}.{}.onnx".format(graph.stem, *version)
        contents[bundle.folder / files[name]] = lowered.graph
    return files, aliased


def _write(bundle: Bundle, plan: CommandPlan, contents: Mapping[Path, bytes]) -> Path:
    """All of it or nothing; the script's path."""
    folder = bundle.folder / ENGINES
    commands = folder / f"commands-{plan.label}.sh"
    inputs = [folder / FOLDER / name for name in _INPUTS]
    with _nothing_new_on_failure([folder, folder / FOLDER, *inputs, *contents, commands]):
        folder.mkdir(exist_ok=True)
        refusal = _write_inputs(bundle)
        files = dict(contents)
        if refusal is None and plan.plugins:
            files[folder / FOLDER / "with_plugins.py"] = _WITH_PLUGINS.encode()
        files[commands] = script(bundle, plan, refusal).encode()
        replace_files(files)
        commands.chmod(0o755)
    return commands


@contextmanager
def _nothing_new_on_failure(paths: Iterable[Path]) -> Iterator[None]:
    """Remove those that were not there before; a folder stands before what is in it."""
    new = [path for path in paths if not os.path.lexists(path)]
    try:
        yield
    except BaseException:
        for path in reversed(new):
            with suppress(OSError):
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink(missing_ok=True)
        raise


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


def _read_plugins(plugins: str) -> tuple[bytes, str]:
    """The library and the machine it is for."""
    file = user_path(plugins)
    if not file.is_file():
        raise RequestError(f"there is no plugin library {file}; {HOW_TO_GET_IT}, or leave --plugins out")
    try:
        machine, library = machine_of(file), file.read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {file}: {error.strerror or error}; check its permissions") from None
    if machine is None:
        known = " or ".join(MACHINES.values())
        raise RequestError(f"{file} is no shared library for Linux on {known}; {HOW_TO_GET_IT}, or leave --plugins out")
    return library, machine


def summary(report: GraphsReport) -> str:
    """What was written, for people."""
    lines = [f"{report.bundle}: commands for {report.runtime}{f' {report.version}' if report.version else ''}"]
    lines += [f"  {name:<15}{file}" for name, file in report.graphs.items()]
    lines.append(f"  build there: bash {report.commands} build; compare with ONNX Runtime: bash {report.commands} compare")
    if report.library is not None:
        lines.append(f"  {LIBRARY} was copied into the bundle; it is for {report.library} machines")
    elif report.plugins:
        lines.append(f"  needs {LIBRARY} in the bundle, built on the machine that builds the engines (or use --no-plugins)")
    if not report.aliased_caches:
        lines.append("  caches are new tensors in every call: bind two buffers of each and swap them")
    lines += [f"  note: {note}" for note in report.notes]
    return "\n".join(lines)
