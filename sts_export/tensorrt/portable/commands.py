"""A bundle's engines by NVIDIA's own tools: plain commands of trtexec and Polygraphy, for machines without sts-export.

Sources: samples/common/sampleOptions.cpp of https://github.com/NVIDIA/TensorRT (tags v10.3.0 to v11.1);
`polygraphy run --help` and `polygraphy convert --help` of Polygraphy 0.53.6.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from sts_export.bundle.manifest import Bundle
from sts_export.lowering.tensorrt import FUSED
from sts_export.tensorrt.plugins import LIBRARY
from sts_export.tensorrt.portable.sample_inputs import FOLDER, Case, cases_of
from sts_export.tensorrt.portable.shell_script import CURRENT, FIND_TRTEXEC, FOLDERS, HAVE_ENGINES, NEED
from sts_export.tensorrt.profiles import is_dynamic, profiles, shapes
from sts_export.tensorrt.runtimes import Runtime

OLDEST_POLYGRAPHY = (0, 50)  # the first version that binds a cache's output to its input
ONNXRUNTIME = "onnxruntime>=1.31"
POLYGRAPHY = "polygraphy>={}.{}".format(*OLDEST_POLYGRAPHY)
_ENGINES, _OUTPUTS = "@engines@", "@outputs@"  # become shell variables
_TYPED_ONLY = (11, 0)  # every network is strongly typed; the flag is a no-op


@dataclass(frozen=True)
class CommandPlan:
    """What to build.

    Args:
        version: of TensorRT; of no meaning for TensorRT for RTX.
        graphs: file in the bundle folder of each graph, as TensorRT takes it.
        plugins: engines need libsts_plugins.so.
    """

    runtime: Runtime
    version: tuple[int, int]
    graphs: dict[str, str]
    plugins: bool
    max_batch: int
    optimization_level: int | None = None
    workspace_mb: int | None = None

    @property
    def label(self) -> str:
        return "tensorrt-{}.{}".format(*self.version) if self.runtime == "tensorrt" else self.runtime

    @property
    def script(self) -> str:
        return f"engines/commands-{self.label}.sh"

    @property
    def engines(self) -> str:
        """Default folder of the engines, in the bundle; not where `sts-export build` keeps its own."""
        return f"engines/by-commands/{self.label}"


def trtexec(bundle: Bundle, plan: CommandPlan, graph: str) -> list[str]:
    """Builds one engine.  A profile's shapes follow its number in any order, one right after the other.

    From TensorRT 10.15 on attention stays one operator in the graph; "decomposable" lets it fall back on several kernels where
    there is no fused one (float32, unusual head sizes).
    """
    command = [
        "trtexec",
        f"--onnx={plan.graphs[graph]}",
        f"--saveEngine={_part(graph)}",
        "--skipInference",
        "--noTF32",  # on by default, and too coarse for stage 1's distances
    ]
    if plan.version < _TYPED_ONLY:
        command.append("--stronglyTyped")
    if plan.version >= FUSED:
        command.append("--decomposableAttentions=*")
    if plan.plugins:
        command.append(f"--dynamicPlugins=./{LIBRARY}")  # into the registry; --staticPlugins only opens the library
    command.append(f"--timingCacheFile={_ENGINES}/timing.cache")
    if plan.optimization_level is not None:
        command.append(f"--builderOptimizationLevel={plan.optimization_level}")
    if plan.workspace_mb is not None:
        command.append(f"--memPoolSize=workspace:{plan.workspace_mb}")
    for index, sizes in enumerate(_profiles(bundle, plan, graph)):
        command.append(f"--profile={index}")
        for which, option in enumerate(("--minShapes", "--optShapes", "--maxShapes")):
            spec = ",".join(f"{name}:{'x'.join(map(str, shape[which]))}" for name, shape in sizes.items())
            command.append(f"{option}={spec}")
    return command


def polygraphy_convert(bundle: Bundle, plan: CommandPlan, graph: str) -> list[str]:
    """Builds one engine with TensorRT for RTX, which comes without trtexec when it comes from pip.

    Without a timing cache: kernels are timed on the machine that runs them.
    """
    command = ["polygraphy", "convert", plan.graphs[graph], "--convert-to", "trt", "-o", _part(graph)]
    command += ["--strongly-typed", "--decomposable-attentions"]
    if plan.optimization_level is not None:
        command += ["--builder-optimization-level", str(plan.optimization_level)]
    if plan.workspace_mb is not None:
        command += ["--pool-limit", f"workspace:{plan.workspace_mb}M"]
    for sizes in _profiles(bundle, plan, graph):
        for which, option in enumerate(("--trt-min-shapes", "--trt-opt-shapes", "--trt-max-shapes")):
            command.append(option)
            command += [f"{name}:[{','.join(map(str, shape[which]))}]" for name, shape in sizes.items()]
    return command


def _part(graph: str) -> str:
    """Where an engine is written, until it is whole."""
    return f"{_ENGINES}/{graph}.engine.part"


def _profiles(bundle: Bundle, plan: CommandPlan, graph: str) -> list[dict[str, tuple[tuple[int, ...], ...]]]:
    """Of every profile, input name -> least, best and largest shape."""
    inputs = [spec for spec in bundle.manifest.graphs[graph].inputs if is_dynamic(spec)]
    return [
        {spec.name: shapes(spec, profile) for spec in inputs} for profile in profiles(bundle.manifest, graph, plan.max_batch)
    ]


def polygraphy_runs(bundle: Bundle, plan: CommandPlan, case: Case) -> tuple[list[str], list[str]]:
    """ONNX Runtime on the bundle's own graph, then the engine on the same inputs, compared with what that gave."""
    inputs, outputs = f"engines/{FOLDER}/inputs.py", f"{_OUTPUTS}/{case.name}.json"
    feed = f"engines/{FOLDER}/{'with_plugins.py' if plan.plugins else 'inputs.py'}:{case.name}"
    reference = ["polygraphy", "run", bundle.manifest.graph_files[case.graph].file, "--onnxrt", "--providers", "cpu"]
    reference += ["--data-loader-script", f"{inputs}:{case.name}", "--save-outputs", outputs]
    engine = ["polygraphy", "run", f"{_ENGINES}/{case.graph}.engine", "--model-type", "engine", "--trt"]
    engine += ["--optimization-profile", str(case.profile), "--data-loader-script", feed]
    engine += ["--load-outputs", outputs, "--compare-func-script", f"{inputs}:compare"]
    return reference, engine


def script(bundle: Bundle, plan: CommandPlan, refusal: str | None = None) -> str:
    """A shell script of all of them, for BUNDLE/engines.

    Args:
        refusal: why engines of this bundle are not compared; None if they are.
    """
    rtx = plan.runtime == "tensorrt-rtx"
    usage = _usage(plan)
    lines = ["#!/usr/bin/env bash", *(f"# {line}" for line in usage), "set -euo pipefail", "", "usage() {", "  cat <<'END'"]
    lines += [*usage, "END", "}", "", 'for word in "$@"; do', "  case $word in", "  -h | --help)", "    usage", "    exit 0"]
    lines += ["    ;;", "  esac", "done"]
    lines += FOLDERS.format(default=plan.engines).splitlines()
    lines += ["if [ $# -gt 2 ]; then", "  step=", "fi"]
    if rtx:
        lines.append("export POLYGRAPHY_USE_TENSORRT_RTX=1")
    parts = [CURRENT.format(script=plan.script), NEED.format(advice=_advice(plan))]
    parts += [] if rtx else [FIND_TRTEXEC]
    parts += [HAVE_ENGINES.format(script=plan.script, graphs=" ".join(bundle.manifest.graphs))]
    if plan.plugins:
        parts.append(_HAVE_PLUGINS)
    lines += [line for part in parts for line in part.splitlines()]
    plugins = ["  have_plugins"] if plan.plugins else []
    lines += ["", "case $step in", "build)", *plugins, "  need polygraphy tensorrt_rtx" if rtx else "  find_trtexec"]
    lines.append('  mkdir -p "$engines"')
    for graph in bundle.manifest.graphs:
        command = (polygraphy_convert if rtx else trtexec)(bundle, plan, graph)
        engine = f"{_ENGINES}/{graph}.engine"
        lines += [f"  if ! current {graph} {shlex.quote(plan.graphs[graph])}; then", _shell(command, "    ")]
        lines += [_shell(["mv", _part(graph), engine], "    "), "  fi"]
    lines += ["  ;;", "compare)"]
    if refusal is None:
        lines += [*plugins, f"  need polygraphy onnxruntime {'tensorrt_rtx' if rtx else 'tensorrt'}", "  have_engines"]
        lines += ["  outputs=$(mktemp -d)", "  trap 'rm -rf \"$outputs\"' EXIT"]
        lines += [
            _shell(command, "  ") for case in cases_of(bundle.manifest) for command in polygraphy_runs(bundle, plan, case)
        ]
    else:
        lines += [f"  echo {shlex.quote(refusal)} >&2", "  exit 1"]
    lines += ["  ;;", "*)", "  usage >&2", "  exit 2", "  ;;", "esac"]
    return "\n".join(lines) + "\n"


_HAVE_PLUGINS = f"""
have_plugins() {{
  if [ ! -e {LIBRARY} ]; then
    echo "{LIBRARY} is missing in $PWD: build it on this machine with scripts/build_plugins and put it there," \\
      "or write these commands again with --no-plugins" >&2
    exit 1
  fi
}}
"""


def _usage(plan: CommandPlan) -> list[str]:
    rtx = plan.runtime == "tensorrt-rtx"
    tool = "Polygraphy" if rtx else "trtexec"
    title = "TensorRT for RTX" if rtx else "TensorRT {}.{}".format(*plan.version)
    return [
        f"Engines of this bundle for {title}, by NVIDIA's own tools; written by sts-export.",
        f"  bash {plan.script} build [FOLDER]      {tool} builds engines that are missing or older than their graph",
        f"  bash {plan.script} compare [FOLDER]    Polygraphy compares them with ONNX Runtime, graph by graph",
        f"FOLDER of the engines: {plan.engines} in the bundle by default.",
    ]


def _advice(plan: CommandPlan) -> str:
    """What to install for Polygraphy; goes between double quotes of the shell."""
    install = f"pip install '{POLYGRAPHY}' '{ONNXRUNTIME}'"
    python = "onnxruntime 1.31 needs Python 3.11 or newer"
    if plan.runtime == "tensorrt-rtx":
        return f"{install} tensorrt_rtx; {python}"
    return (
        f"{install} 'tensorrt=={plan.version[0]}.{plan.version[1]}.*' (on Jetson the Debian package python3-libnvinfer brings "
        f"tensorrt); {python}, which JetPack 6 lacks: engines can be built there, but not compared"
    )


def _shell(command: Sequence[str], indent: str) -> str:
    """One command, an option with its values a line."""
    lines: list[list[str]] = [[]]
    for word in command:
        if word.startswith("-") and lines[-1]:
            lines.append([])
        quoted = shlex.quote(word).replace(_ENGINES, '"$engines"').replace(_OUTPUTS, '"$outputs"')
        lines[-1].append(quoted)
    return indent + f" \\\n{indent}  ".join(" ".join(line) for line in lines)
