"""The TensorRT plugins: compiled against every given TensorRT, driven by the conformance harness, loaded by TensorRT-RTX."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.plugins.trt_build import REPOSITORY, built, each_root, one_root, run, version
from tests.tensorrt.real_api import missing

EXPORTS = {"getCreators", "setLoggerFinder", "stsPluginsTensorRTVersion", "stsPluginsHostEnqueue"}
STAGES = ["creator", "fields", "capabilities", "output types", "output shapes", "formats", "configure", "workspace"]
STAGES += ["serialization", "clones", "shape change", "enqueue"]
EXPECTED = [("RepulsionSelect", "1", "sts", ["epsilon"]), ("LastTokenTopK", "1", "sts", ["scale"])]

# In a process of its own: what is loaded into the registry stays there.
LIST = """
import sys, tensorrt_rtx as trt
registry = trt.get_plugin_registry()
before = len(registry.all_creators)
assert registry.load_library(sys.argv[1]) is not None
for creator in registry.all_creators[before:]:
    print((creator.name, creator.plugin_version, creator.plugin_namespace, [field.name for field in creator.field_names]))
"""
CREATE = """
import sys, numpy, tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
registry = trt.get_plugin_registry()
registry.load_library(sys.argv[1])
creator = registry.get_creator("RepulsionSelect", "1", "sts")
for epsilon in (1e-6, -1.0):
    value = numpy.array([epsilon], numpy.float32)
    fields = trt.PluginFieldCollection([trt.PluginField("epsilon", value, trt.PluginFieldType.FLOAT32)])
    print(epsilon, creator.create_plugin("layer", fields, trt.TensorRTPhase.BUILD) is not None, flush=True)
"""
AUTOLOAD = """
import ctypes, pathlib, sys, tensorrt_rtx as trt, tensorrt_rtx_libs
if sys.argv[2] == "loaded":
    library = next(pathlib.Path(tensorrt_rtx_libs.__file__).parent.glob("libtensorrt_rtx.so*"))
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
ctypes.CDLL(sys.argv[1])
print([creator.name for creator in trt.get_plugin_registry().all_creators if creator.plugin_namespace == "sts"])
"""


def counts(text: str) -> tuple[int, int, int]:
    """The harness's last line: checks passed, skipped, failed."""
    found = re.search(r"^(\d+) passed, (\d+) skipped, (\d+) failed$", text, re.MULTILINE)
    assert found, text
    passed, skipped, failed = map(int, found.groups())
    return passed, skipped, failed


def symbols(library: Path) -> set[str]:
    result = run(["nm", "--dynamic", "--defined-only", library])
    assert result.returncode == 0, result.stdout
    return {line.split()[-1].split("@")[0] for line in result.stdout.splitlines()}


@each_root
def test_conformance(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without a warning; the whole life of each plugin, with enqueue on the host against the harness's own reference."""
    folder = built(tmp_path_factory, root)
    result = run([folder / "sts_conformance", folder / "libsts_plugins_host_enqueue.so"])
    passed, skipped, failed = counts(result.stdout)
    assert (result.returncode, skipped, failed) == (0, 0, 0), result.stdout
    assert passed > 1000
    for stage in STAGES:
        assert re.search(rf"^{stage} +\d+ passed +\d+ passed", result.stdout, re.MULTILINE), f"{stage}:\n{result.stdout}"


@one_root
def test_no_memory_is_lost(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The harness under valgrind: nothing leaks, nothing is read or written where it must not be."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is absent")
    folder = built(tmp_path_factory, root)
    command = ["valgrind", "--quiet", "--error-exitcode=9", "--leak-check=full"]
    result = run(
        [
            *command,
            "--errors-for-leak-kinds=definite,indirect,possible",
            folder / "sts_conformance",
            folder / "libsts_plugins_host_enqueue.so",
        ]
    )
    assert result.returncode == 0, result.stdout[-8000:]


@each_root
def test_registry(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """TensorRT-RTX's plugin registry loads the library and lists both creators."""
    pytest.importorskip("tensorrt_rtx")
    folder = built(tmp_path_factory, root)
    result = run([sys.executable, "-c", LIST, folder / "libsts_plugins_host_enqueue.so"])
    assert result.returncode == 0, result.stdout
    assert result.stdout.splitlines() == [str(entry) for entry in EXPECTED]


@each_root
def test_messages_reach_the_logger(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """TensorRT-RTX creates a plugin, and its logger prints why it creates no other one."""
    pytest.importorskip("tensorrt_rtx")
    if not version(root).startswith("11."):
        pytest.skip("TensorRT-RTX has the logger of TensorRT 11; these headers have another one")
    folder = built(tmp_path_factory, root)
    result = run([sys.executable, "-c", CREATE, folder / "libsts_plugins_host_enqueue.so"])
    assert result.returncode == 0, result.stdout
    assert "1e-06 True" in result.stdout and "-1.0 False" in result.stdout
    assert '[TRT] [E] sts::RepulsionSelect: field "epsilon" is -1; it must be finite and above 0' in result.stdout, (
        result.stdout
    )


@one_root
def test_autoload(root: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """libsts_plugins_autoload.so registers its neighbour where TensorRT is loaded, and says so where it is not."""
    pytest.importorskip("tensorrt_rtx")
    folder = built(tmp_path_factory, root)
    autoload = Path(shutil.copy(folder / "libsts_plugins_autoload.so", tmp_path))
    absent = run([sys.executable, "-c", AUTOLOAD, autoload, "loaded"])
    assert "TensorRT could not load it" in absent.stdout and "[]" in absent.stdout, absent.stdout
    shutil.copy(folder / "libsts_plugins_host_enqueue.so", tmp_path / "libsts_plugins.so")
    loaded = run([sys.executable, "-c", AUTOLOAD, autoload, "loaded"])
    assert loaded.stdout.strip() == "['RepulsionSelect', 'LastTokenTopK']"
    hidden = run([sys.executable, "-c", AUTOLOAD, autoload, "hidden"])
    assert "is not loaded in this process" in hidden.stdout and "[]" in hidden.stdout, hidden.stdout


@one_root
def test_library_for_the_device(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With device code: exports what it must, links neither TensorRT nor CUDA, passes all but enqueue without a GPU."""
    folder = built(tmp_path_factory, root, ["sts_plugins", "sts_kernels", "sts_conformance"])
    assert symbols(folder / "libsts_plugins.so") == EXPORTS
    assert {name for name in symbols(folder / "libsts_kernels.so") if not name.startswith("sts_")} == set()
    for name in ("libsts_plugins.so", "libsts_kernels.so"):
        needed = re.findall(r"NEEDED.*\[(.+)\]", run(["readelf", "--dynamic", folder / name]).stdout)
        assert needed and not [library for library in needed if re.search("nvinfer|cuda|tensorrt", library)], needed
    library = ctypes.CDLL(str(folder / "libsts_plugins.so"))
    major, minor, patch = map(int, version(root).split("."))
    assert library.stsPluginsTensorRTVersion() == 10000 * major + 100 * minor + patch
    assert library.stsPluginsHostEnqueue() == 0
    result = run([folder / "sts_conformance", folder / "libsts_plugins.so"])
    passed, skipped, failed = counts(result.stdout)
    assert result.returncode == 0 and failed == 0 and passed > 1000, result.stdout
    if skipped:
        assert f"skipped {skipped}: enqueue needs a GPU" in result.stdout, result.stdout


@one_root
def test_harness_refuses(root: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """What is no plugin library, in one line."""
    folder = built(tmp_path_factory, root)
    for path in (tmp_path / "absent.so", folder / "libsts_plugins_autoload.so"):
        result = run([folder / "sts_conformance", path])
        assert result.returncode == 2 and "sts_conformance: " in result.stdout, result.stdout
    assert run([folder / "sts_conformance"]).returncode == 2


@each_root
def test_tensorrt_itself_makes_both_plugins(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """NVIDIA's lean runtime: the library as the package loads it, both creators, a plugin of each, none of a wrong field.

    A library for another major version is refused before it is registered.
    """
    if (package := missing("tensorrt_lean")) is not None:
        pytest.skip(f"{package} is not installed: pip install {package}")
    folder = built(tmp_path_factory, root, ["sts_plugins"])
    describe = [sys.executable, "-m", "tests.tensorrt.real_api", "tensorrt_lean"]
    result = run([*describe, folder / "libsts_plugins.so"], cwd=REPOSITORY)
    lines = result.stdout.splitlines()
    installed = json.loads(lines[0])["version"].split(".")
    if version(root).split(".")[0] != installed[0]:
        assert result.returncode != 0 and f"and {'.'.join(installed[:2])} is installed" in result.stdout
        return
    assert result.returncode == 0, result.stdout
    creators = json.loads(next(line for line in lines if line.startswith("[")))
    assert [(*creator["identity"], [name for name, _ in creator["fields"]]) for creator in creators] == EXPECTED
    for creator, (name, _, _, [field]) in zip(creators, EXPECTED, strict=True):
        assert creator["fields"] == [[field, "FLOAT32"]] and creator["made"] and not creator["made_wrongly"]
        assert f'sts::{name}: field "{field}" is -1; it must be finite and above 0' in result.stdout
