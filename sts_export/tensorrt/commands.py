"""A bundle's engines by NVIDIA's own tools: plain commands of trtexec and Polygraphy, for machines without sts-export.

Sources: samples/common/sampleOptions.cpp of https://github.com/NVIDIA/TensorRT (tags v10.3.0 to v11.1);
`polygraphy run --help` and `polygraphy convert --help` of Polygraphy 0.53.6.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from sts_export.bundle import GRAPHS, Bundle
from sts_export.tensorrt.lowering import FUSED
from sts_export.tensorrt.module import Runtime
from sts_export.tensorrt.plugins import LIBRARY
from sts_export.tensorrt.profiles import is_dynamic, profiles, shapes
from sts_export.tensorrt.sample import CASES, FOLDER, Case

OLDEST_POLYGRAPHY = (0, 50)  # the first version that binds a cache's output to its input
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
        f"--saveEngine={_ENGINES}/{graph}.engine",
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
    command = ["polygraphy", "convert", plan.graphs[graph], "--convert-to", "trt", "-o", f"{_ENGINES}/{graph}.engine"]
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
    name = f"engines/commands-{plan.label}.sh"
    rtx = plan.runtime == "tensorrt-rtx"
    title = "TensorRT for RTX" if rtx else "TensorRT {}.{}".format(*plan.version)
    builds = [(polygraphy_convert if rtx else trtexec)(bundle, plan, graph) for graph in GRAPHS]
    if refusal is None:
        compares = [command for case in CASES for command in polygraphy_runs(bundle, plan, case)]
    else:
        compares = [["echo", refusal], ["exit", "1"]]
    lines = [
        "#!/usr/bin/env bash",
        f"# Engines of this bundle for {title}, by NVIDIA's own tools; written by sts-export.",
        f"#   bash {name} build [FOLDER]      {'Polygraphy' if rtx else 'trtexec'} builds the engines",
        f"#   bash {name} compare [FOLDER]    Polygraphy compares them with ONNX Runtime, graph by graph",
        f"# FOLDER of the engines: {plan.engines} by default.",
        f"# Polygraphy and ONNX Runtime: pip install '{POLYGRAPHY}' 'onnxruntime>=1.31'",
        *([] if rtx else ["# NVIDIA's Debian packages and JetPack put trtexec into /usr/src/tensorrt/bin: add that to PATH."]),
        "set -euo pipefail",
        'cd "$(dirname "$0")/.."',
        "step=${1:-build}",
        f"engines=${{2:-{plan.engines}}}",
    ]
    if rtx:
        lines.append("export POLYGRAPHY_USE_TENSORRT_RTX=1")
    if plan.plugins:
        lines += [
            f"if [ ! -e {LIBRARY} ]; then",
            f'  echo "{LIBRARY} is missing in $PWD: build it on this machine with scripts/build_plugins and put it there," \\',
            '    "or write these commands again with --no-plugins" >&2',
            "  exit 1",
            "fi",
        ]
    lines += ["case $step in", "build)", '  mkdir -p "$engines"', *map(_shell, builds), "  ;;", "compare)"]
    lines += ["  outputs=$(mktemp -d)", "  trap 'rm -rf \"$outputs\"' EXIT", *map(_shell, compares), "  ;;"]
    lines += ["*)", f'  echo "usage: bash {name} build|compare [FOLDER]" >&2', "  exit 2", "  ;;", "esac"]
    return "\n".join(lines) + "\n"


def _shell(command: Sequence[str]) -> str:
    """One command, an option with its values a line."""
    lines: list[list[str]] = [[]]
    for word in command:
        if word.startswith("-") and lines[-1]:
            lines.append([])
        quoted = shlex.quote(word).replace(_ENGINES, '"$engines"').replace(_OUTPUTS, '"$outputs"')
        lines[-1].append(quoted)
    return "  " + " \\\n    ".join(" ".join(line) for line in lines)
