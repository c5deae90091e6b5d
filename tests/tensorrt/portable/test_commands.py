"""The commands that a bundle brings along: options that the tools know, shapes as the tools read them, and what runs here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.tensorrt.portable.commands import CommandPlan, polygraphy_convert, polygraphy_runs, script, trtexec
from sts_export.tensorrt.portable.graphs import GraphsRequest, write_graphs
from sts_export.tensorrt.portable.sample_inputs import Case
from sts_export.tensorrt.profiles import is_dynamic, profiles, shapes
from tests.support.bundles import GRAPHS, export_to
from tests.support.programs import calls_of, make_engines, program, recorder, run_script
from tests.support.sample_cases import CASES

# Options that trtexec parses, from samples/common/sampleOptions.cpp of https://github.com/NVIDIA/TensorRT at the tag: the
# names given to getAndDelOption and its relatives.  What trtexec does not know makes it stop.
TRTEXEC_10_3 = """
    allocationStrategy allowGPUFallback allowWeightStreaming avgRuns avgTiming best bf16 buildDLAStandalone
    builderOptimizationLevel calib calibProfile consistency device directIO dumpLayerInfo dumpOptimizationProfile dumpOutput
    dumpProfile dumpRawBindingsToFile dumpRefit duration dynamicPlugins errorOnTimingCacheMiss excludeLeanRuntime
    exportLayerInfo exportOutput exportProfile exportTimes exposeDMA fp16 fp8 getPlanVersionOnly hardwareCompatibilityLevel
    help idleTime ignoreParsedPluginLibs infStreams inputIOFormats int4 int8 iterations layerDeviceTypes layerOutputTypes
    layerPrecisions leanDLLPath loadEngine loadInputs markDebug maxAuxStreams maxShapes maxShapesCalib memPoolSize minShapes
    minShapesCalib noBuilderCache noCompilationCache noDataTransfers noTF32 onnx optShapes optShapesCalib outputIOFormats
    percentile persistentCacheRatio pi pluginInstanceNorm plugins precisionConstraints preview profile profilingVerbosity
    refit restricted runtimePlatform safe saveDebugTensors saveEngine separateProfileRun serialized setPluginsToSerialize
    shapes skipInference sleepTime sparsity staticPlugins std streams stripAllWeights stripWeights stronglyTyped
    tacticSources tempdir tempfileControls threads timeDeserialize timeRefit timingCacheFile useCudaGraph useDLACore
    useManagedMemory useProfile useRuntime useSpinWait vc verbose versionCompatible warmUp weightStreamingBudget
    weightless"""
# Tag v11.1 has dropped some of these and added others; decomposableAttentions is there since v10.14.
DROPPED_11_1 = """
    best bf16 calib calibProfile fp16 fp8 int4 layerOutputTypes layerPrecisions maxShapesCalib minShapesCalib optShapesCalib
    precisionConstraints restricted weightless"""
TRTEXEC = {
    (10, 3): set(TRTEXEC_10_3.split()),
    (10, 16): {*TRTEXEC_10_3.split(), "decomposableAttentions"},
    (11, 1): {*TRTEXEC_10_3.split(), "decomposableAttentions"} - set(DROPPED_11_1.split()),
}
Shapes = dict[str, tuple[int, ...]]


def plan(version: tuple[int, int] = (10, 3), **options: object) -> CommandPlan:
    graphs = {name: f"{name}.tensorrt-10.3.onnx" for name in GRAPHS}
    settings = {"runtime": "tensorrt", "version": version, "graphs": graphs, "plugins": True, "max_batch": 4, **options}
    return CommandPlan(**settings)  # type: ignore[arg-type]


def read_profiles(arguments: list[str]) -> list[dict[str, Shapes]]:
    """As trtexec reads them: after ``--profile=N`` come its shapes, each right behind the one before (getOptimizationProfiles
    in sampleOptions.cpp); names end at the last colon (splitNameAndValue), sizes are parted by x."""
    found: dict[int, dict[str, Shapes]] = {}
    for position, argument in enumerate(arguments):
        if argument.startswith("--profile="):
            number = int(argument.removeprefix("--profile="))
            assert number not in found
            found[number] = {}
            for behind in arguments[position + 1 : position + 4]:
                option, _, value = behind.partition("=")
                if option not in ("--minShapes", "--optShapes", "--maxShapes"):
                    break
                specs = [spec.rpartition(":") for spec in value.split(",")]
                found[number][option] = {name: tuple(int(size) for size in sizes.split("x")) for name, _, sizes in specs}
    assert sorted(found) == list(range(len(found)))
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize("version", TRTEXEC)
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_trtexec(bundles: dict[str, Bundle], family: str, version: tuple[int, int]) -> None:
    bundle = bundles[family]
    for name in GRAPHS:
        program, *arguments = trtexec(bundle, plan(version, optimization_level=2, workspace_mb=512), name)
        assert program == "trtexec"
        options = [argument.removeprefix("--").partition("=")[0] for argument in arguments]
        assert set(options) <= TRTEXEC[version]
        assert ("stronglyTyped" in options) == (version < (11, 0))  # a no-op that warns from 11.0 on
        assert ("decomposableAttentions" in options) == (version >= (10, 15))
        assert f"--onnx={name}.tensorrt-10.3.onnx" in arguments
        assert "--dynamicPlugins=./libsts_plugins.so" in arguments
        assert {"--builderOptimizationLevel=2", "--memPoolSize=workspace:512"} <= set(arguments)
        expected = []
        dynamic = [spec for spec in bundle.manifest.graphs[name].inputs if is_dynamic(spec)]
        for profile in profiles(bundle.manifest, name, 4):
            three = {spec.name: shapes(spec, profile) for spec in dynamic}
            expected.append(
                {
                    option: {key: shape[which] for key, shape in three.items()}
                    for which, option in enumerate(("--minShapes", "--optShapes", "--maxShapes"))
                }
            )
        assert read_profiles(arguments) == expected
        assert len(expected) == (2 if name.startswith("llm") else 1)
    without = trtexec(bundle, plan(version, plugins=False), "selector")
    assert not any("lugins" in argument or "memPool" in argument or "Level" in argument for argument in without)


@pytest.fixture(scope="module")
def exact(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A float32 bundle with graphs and commands for TensorRT 10.3 without plugins, and for TensorRT for RTX."""
    bundle = export_to(checkpoints["llava"], tmp_path_factory.mktemp("commands") / "a bundle's folder", "float32")
    write_graphs(GraphsRequest(bundle.folder, version="10.3", use_plugins=False))
    write_graphs(GraphsRequest(bundle.folder, runtime="tensorrt-rtx"))
    return bundle


@pytest.fixture
def copy(exact: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exact.folder, tmp_path / "a bundle's copy", ignore=shutil.ignore_patterns("by-commands")))


def test_the_script_runs_these_commands(copy: Path, tmp_path: Path) -> None:
    """Through a shell, from another folder, in a folder whose name needs quotes."""
    bundle, programs = open_bundle(copy), tmp_path / "programs"
    program(programs, "python3", "")  # has every module
    for name in ("trtexec", "polygraphy"):
        recorder(programs, name)
    assert run_script(copy, "tensorrt-10.3", "build", path=programs).returncode == 0
    make_engines(tmp_path / "other engines")
    done = run_script(copy, "tensorrt-10.3", "compare", "other engines", path=programs, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    calls = calls_of(programs)
    made = plan(plugins=False, max_batch=1)
    default = made.engines
    assert {file.name for file in (copy / default).iterdir()} == {f"{name}.engine" for name in GRAPHS}
    expected = [[word.replace("@engines@", default) for word in trtexec(bundle, made, name)] for name in GRAPHS]
    assert calls[:4] == expected
    compares = [command for case in CASES for command in polygraphy_runs(bundle, made, case)]
    assert len(calls[4:]) == len(compares) == 12
    for call, command in zip(calls[4:], compares, strict=True):
        words = [word.replace("@engines@", str(tmp_path / "other engines")) for word in command]
        assert [word for word, plain in zip(call, words, strict=True) if "@outputs@" not in plain] == [
            word for word in words if "@outputs@" not in word
        ]
    assert not [line for line in (programs / "calls").read_text().splitlines() if "@" in line]


@pytest.mark.parametrize("absolute", [False, True])
def test_a_given_folder_is_the_callers(copy: Path, tmp_path: Path, absolute: bool) -> None:
    recorder(tmp_path / "programs", "trtexec")
    folder = str(tmp_path / "mine") if absolute else "mine"
    assert run_script(copy, "tensorrt-10.3", "build", folder, path=tmp_path / "programs", cwd=tmp_path).returncode == 0
    assert {file.name for file in (tmp_path / "mine").iterdir()} == {f"{name}.engine" for name in GRAPHS}
    assert not (copy / "mine").exists()


def test_engines_that_are_newer_than_their_graph_stay(copy: Path, tmp_path: Path) -> None:
    recorder(tmp_path / "programs", "trtexec")

    def built() -> list[str]:
        (tmp_path / "programs" / "calls").write_text("")
        done = run_script(copy, "tensorrt-10.3", path=tmp_path / "programs")
        assert done.returncode == 0, done.stderr
        again = [call[1].removeprefix("--onnx=").split(".")[0] for call in calls_of(tmp_path / "programs")]
        assert [name for name in GRAPHS if f"/{name}.engine is newer than {name}.tensorrt-10.3.onnx" in done.stdout] == [
            name for name in GRAPHS if name not in again
        ]
        assert done.stdout.count("remove it to build it again") == 4 - len(again)
        return again

    def age(file: Path, seconds: float) -> None:
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime + seconds))

    assert built() == list(GRAPHS)
    assert built() == []
    age(copy / "selector.tensorrt-10.3.onnx", 60)
    assert built() == ["selector"]
    age(copy / "selector.tensorrt-10.3.onnx", -120)
    (copy / "engines" / "by-commands" / "tensorrt-10.3" / "llm_upper.engine").unlink()
    assert built() == ["llm_upper"]
    write_graphs(GraphsRequest(copy, version="10.3", use_plugins=False))  # the same files again
    assert built() == []
    write_graphs(GraphsRequest(copy, version="10.3", use_plugins=False, max_batch=2))  # other profiles, the same graphs
    assert built() == list(GRAPHS)


def test_the_script_stops_where_a_tool_fails(copy: Path, tmp_path: Path) -> None:
    """A half-written engine is not taken for one."""
    calls = tmp_path / "programs" / "calls"
    recorder(tmp_path / "programs", "trtexec")
    with (tmp_path / "programs" / "trtexec").open("a") as text:
        text.write("exit 3\n")
    for count in (1, 2):
        assert run_script(copy, "tensorrt-10.3", "build", path=tmp_path / "programs").returncode == 3
        assert calls.read_text().count("\n") == count
    assert not list(copy.rglob("*.engine"))


def test_wrong_steps_and_missing_plugins(copy: Path, tmp_path: Path) -> None:
    for arguments in (["biuld"], ["build", "one", "two"]):
        wrong = run_script(copy, "tensorrt-10.3", *arguments)
        assert wrong.returncode == 2 and "compare [FOLDER]" in wrong.stderr and not wrong.stdout
    write_graphs(GraphsRequest(copy, version="10.7"))
    recorder(tmp_path / "programs", "trtexec")
    for step in ("build", "compare"):
        missing = run_script(copy, "tensorrt-10.7", step, path=tmp_path / "programs")
        assert missing.returncode == 1 and "libsts_plugins.so is missing in" in missing.stderr
    assert not (tmp_path / "programs" / "calls").exists()
    (copy / "libsts_plugins.so").write_bytes(b"")
    assert run_script(copy, "tensorrt-10.7", path=tmp_path / "programs").returncode == 0
    assert (tmp_path / "programs" / "calls").read_text().count("--dynamicPlugins=./libsts_plugins.so") == 4


def test_bfloat16_has_no_comparison(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    bundle = export_to(checkpoints["llava"], tmp_path / "bundle", "bfloat16")
    write_graphs(GraphsRequest(bundle.folder, version="10.3", use_plugins=False))
    said = run_script(bundle.folder, "tensorrt-10.3", "compare")
    assert said.returncode == 1 and "cannot run bfloat16" in said.stderr
    assert not (bundle.folder / "engines" / "polygraphy").exists()


# Polygraphy itself

polygraphy = pytest.mark.skipif(
    shutil.which("polygraphy", path=str(Path(sys.executable).parent)) is None,
    reason="polygraphy is not installed: pip install 'polygraphy>=0.50'",
)


def run(bundle: Bundle, command: list[str], outputs: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).parent / command[0])
    words = [word.replace("@outputs@", str(outputs)).replace("@engines@", "engines/x") for word in command[1:]]
    return subprocess.run(
        [program, *words], capture_output=True, text=True, cwd=bundle.folder, env={**os.environ, **environment}
    )


@polygraphy
@pytest.mark.parametrize("case", [CASES[1], CASES[2]], ids=lambda case: case.name)
def test_polygraphy_runs_and_compares(exact: Bundle, case: Case, tmp_path: Path) -> None:
    """ONNX Runtime's half as it is written; the engine's half with the graph lowered for TensorRT 10.3 on ONNX Runtime in the
    engine's place."""
    made = plan(plugins=False)
    reference, engine = polygraphy_runs(exact, made, case)
    done = run(exact, reference, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    stand_in = [word for word in engine if word not in ("--model-type", "engine")]
    stand_in[stand_in.index("--trt")] = "--onnxrt"
    index = stand_in.index("--optimization-profile")
    del stand_in[index : index + 2]
    stand_in[2] = made.graphs[case.graph]
    done = run(exact, stand_in, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    outputs = exact.manifest.graphs[case.graph].outputs
    assert done.stdout.count(": max abs") == done.stdout.count(", passed") == len(outputs)


@polygraphy
def test_polygraphy_notices_a_broken_engine(exact: Bundle, tmp_path: Path) -> None:
    """The selector's expected outputs are replaced by others."""
    from polygraphy.comparator import IterationResult, RunResults

    made, case = plan(plugins=False), CASES[1]
    reference, engine = polygraphy_runs(exact, made, case)
    assert run(exact, reference, tmp_path).returncode == 0
    (file,) = tmp_path.glob("*.json")
    outputs = dict(RunResults.load(str(file))[0][1][0].items())
    outputs["kept_index"] = outputs["kept_index"] + 1
    changed = RunResults([("spoiled", [IterationResult(outputs, runner_name="spoiled", runtime=0.0)])])
    changed.save(str(file))
    stand_in = ["polygraphy", "run", made.graphs[case.graph], "--onnxrt", *engine[engine.index("--data-loader-script") :]]
    done = run(exact, stand_in, tmp_path)
    assert done.returncode != 0
    assert "kept_index: max abs 1, relative" in done.stdout and done.stdout.count(", passed") == 1


@polygraphy
def test_polygraphy_knows_the_options_of_an_engine(exact: Bundle, tmp_path: Path) -> None:
    """It writes the program that it would run."""
    _, engine = polygraphy_runs(exact, plan(plugins=False), CASES[-1])
    done = run(exact, [*engine, "--gen", str(tmp_path / "program.py")], tmp_path)
    assert done.returncode == 0, done.stderr
    program = (tmp_path / "program.py").read_text()
    for expected in (
        "BytesFromPath('engines/x/llm_upper.engine')",
        "optimization_profile=1",
        "mod.import_from_script('engines/polygraphy/inputs.py', name='llm_upper_decode')",
        "InvokeFromScript('engines/polygraphy/inputs.py', name='compare')",
    ):
        assert expected in program
    # Plugins are registered when the data loader's script is imported, which is before the engine is read.
    assert program.index("import_from_script") < program.index("EngineFromBytes(")


@polygraphy
def test_plugins_are_registered_before_an_engine_is_read(exact: Bundle, tmp_path: Path) -> None:
    """With a fake of the module ``tensorrt``, in the way in which Polygraphy imports the script."""
    bundle = open_bundle(shutil.copytree(exact.folder, tmp_path / "bundle"))
    write_graphs(GraphsRequest(bundle.folder, version="10.3"))
    _, engine = polygraphy_runs(bundle, plan(), CASES[1])
    assert "engines/polygraphy/with_plugins.py:selector" in engine
    (tmp_path / "tensorrt.py").write_text(
        """
class Registry:
    def get_creator(self, *key):
        assert key == ("RepulsionSelect", "1", "sts")

    def load_library(self, file):
        print("loaded", file)


def get_plugin_registry():
    return Registry()
"""
    )
    code = """
from polygraphy import mod
load = mod.import_from_script("engines/polygraphy/with_plugins.py", name="selector")
print(sorted(next(load())))
print(mod.import_from_script("engines/polygraphy/inputs.py", name="compare").__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=bundle.folder,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stderr == ""
    names = sorted(spec.name for spec in bundle.manifest.graphs["selector"].inputs)
    assert done.stdout.splitlines()[-3:] == [f"loaded {bundle.folder.resolve()}/libsts_plugins.so", str(names), "compare"]


@polygraphy
def test_polygraphy_builds_with_tensorrt_for_rtx(exact: Bundle) -> None:
    """The script as a user runs it; the comparison gets as far as the GPU."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'sts-export[tensorrt-rtx]'")
    assert polygraphy_convert(exact, plan(runtime="tensorrt-rtx"), "selector")[:2] == ["polygraphy", "convert"]
    done = run_script(exact.folder, "tensorrt-rtx")
    assert done.returncode == 0, done.stderr[-2000:]
    folder = exact.folder / "engines" / "by-commands" / "tensorrt-rtx"
    assert {file.name for file in folder.glob("*.engine")} == {f"{name}.engine" for name in GRAPHS}
    assert all(file.stat().st_size > 1000 for file in folder.glob("*.engine"))
    assert open_bundle(exact.folder, check_all=True)
    assert trt.__version__


def test_the_script_is_deterministic(exact: Bundle) -> None:
    assert script(exact, plan()) == script(exact, plan())
    assert script(exact, plan()) != script(exact, plan(max_batch=2))
