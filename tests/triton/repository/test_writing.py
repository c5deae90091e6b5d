"""What lies where in a repository, and that it is whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sts_export.bundle.manifest import open_bundle
from sts_export.errors import OutputError
from tests.triton.repository.helpers import MODEL, add_engines, files, write, write_wheel

CONTAINER = {"Containerfile", "entrypoint", "compose.yaml", "kubernetes.yaml"}


def test_the_layout(bundle: Path, tmp_path: Path) -> None:
    repository = write(bundle, tmp_path / "new" / "repository")
    assert {path.name for path in repository.iterdir() if path.is_dir()} == {MODEL}, "Triton takes every folder as a model"
    beside = {path.name for path in repository.iterdir() if path.is_file()}
    assert beside == {"README.md", "run-server", ".sts-export-triton.json", *CONTAINER}
    assert {path.name for path in (repository / MODEL).iterdir()} == {"config.pbtxt", "1"}
    assert {path.name for path in (repository / MODEL / "1").iterdir()} == {"model.py", "bundle"}
    assert os.access(repository / "run-server", os.X_OK) and os.access(repository / "entrypoint", os.X_OK)
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]


def test_the_copy_is_the_bundle(bundle: Path, tmp_path: Path) -> None:
    copied = write(bundle, tmp_path / "repository") / MODEL / "1" / "bundle"
    assert not copied.is_symlink()
    assert open_bundle(copied, check_all=True).manifest == open_bundle(bundle).manifest
    assert files(copied) == files(bundle)


def test_only_what_a_server_needs_is_copied(bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    add_engines(own)
    (own / "selector.tensorrt-10.3.onnx").write_bytes(b"for another tool")
    (own / "libsts_plugins.so").write_bytes(b"library")
    on_cpu = write(own, tmp_path / "cpu") / MODEL / "1" / "bundle"
    assert files(on_cpu) == files(bundle) | {"libsts_plugins.so"}
    on_gpu = write(own, tmp_path / "gpu", gpus=(0,)) / MODEL / "1" / "bundle"
    engines = files(on_gpu) - files(on_cpu)
    graphs = open_bundle(bundle).manifest.graphs
    folder = "engines/tensorrt/gpu"
    assert engines == {
        "engines",
        "engines/tensorrt",
        folder,
        f"{folder}/build.json",
        *(f"{folder}/{name}.engine" for name in graphs),
    }


def test_engines_that_are_built_at_the_start_have_an_empty_folder(bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    add_engines(own)
    repository = write(own, tmp_path / "repository", gpus=(0,), backend="tensorrt", build_at_start=True)
    assert list((repository / MODEL / "1" / "bundle" / "engines").iterdir()) == []


@pytest.mark.parametrize("name", ["bundle", "linked"])
def test_a_link(origin: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from a relative path: it leads there from anywhere."""
    monkeypatch.chdir(origin)
    repository = write(Path(name), tmp_path / "repository", link=True)
    linked = repository / MODEL / "1" / "bundle"
    assert linked.is_symlink() and linked.resolve() == (origin / name).resolve()
    assert not CONTAINER & files(repository)
    readme = (repository / "README.md").read_text()
    assert "docker" not in readme and "--link" in readme


def test_the_model_of_features(bundle: Path, tmp_path: Path) -> None:
    repository = write(bundle, tmp_path / "repository", with_encoder=True)
    encoder = repository / f"{MODEL}-encoder"
    assert files(encoder) == {"config.pbtxt", "1", "1/model.py"}
    assert (encoder / "1" / "../../m/1/bundle").resolve() == (repository / "m/1/bundle").resolve()
    text = (encoder / "config.pbtxt").read_text()
    assert 'key: "bundle" value { string_value: "../../m/1/bundle" }' in text


@pytest.mark.parametrize("name", ["m", "m-encoder"])
def test_model_py_is_thin(bundle: Path, tmp_path: Path, name: str) -> None:
    """It takes TritonPythonModel from the package, and defines nothing."""
    repository = write(bundle, tmp_path / "repository", with_encoder=True)
    package = "encoder" if name.endswith("encoder") else "model"
    text = (repository / name / "1" / "model.py").read_text()
    assert f"from sts_export.triton.{package}.backend import TritonPythonModel\n" in text
    assert '__all__ = ["TritonPythonModel"]' in text
    compile(text, "model.py", "exec")


def test_wheels_and_sources_lie_beside(bundle: Path, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "sts_export-0.1.0-py3-none-any.whl")
    package = "sts_export_kernels"
    kernels = write_wheel(tmp_path / f"{package}-0.1.0-py3-none-manylinux_2_34_x86_64.whl", package, f"{package}/__init__.py")
    repository = write(bundle, tmp_path / "a", wheel=wheel, kernels=kernels)
    assert (repository / wheel.name).read_bytes() == wheel.read_bytes()
    assert (repository / kernels.name).read_bytes() == kernels.read_bytes()
    checkout = Path(__file__).parents[3]
    repository = write(bundle, tmp_path / "b", gpus=(0,), backend="tensorrt", build_at_start=True, kernels=checkout)
    listed = subprocess.run(
        [sys.executable, "-m", "tarfile", "-l", str(repository / "kernels.tar.gz")], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"plugins/CMakeLists.txt", "scripts/build_plugins"} <= {line.rstrip("/") for line in listed}


# Whole or not there


def test_a_disk_that_fills_up(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, copied = shutil.copyfile, []

    def full(source: Any, target: Any, **options: Any) -> Any:
        copied.append(target)
        if len(copied) > 3:
            Path(target).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(source, target, **options)

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OutputError, match="No space left on device; free space or choose another --output"):
        write(bundle, tmp_path / "new" / "repository")
    assert len(copied) == 4 and files(tmp_path) == set()


def test_a_disk_that_is_full_for_the_last_files(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_text

    def full(path: Path, *arguments: Any, **options: Any) -> int:
        if path.name == "kubernetes.yaml":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left on device; free space or choose another --output"):
        write(bundle, tmp_path / "repository")
    assert files(tmp_path) == set()


def test_a_disk_that_is_too_small(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match=r"no room for the bundle: \d+ MB needed, 0 MB free; free space, .* or use --link"):
        write(bundle, tmp_path / "repository")
    assert files(tmp_path) == set()
    write(bundle, tmp_path / "repository", link=True)


def test_force_replaces_what_is_ours_and_all_of_it(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "repository"
    write(bundle, output, with_encoder=True)
    write(bundle, output, model_name="other", force=True)
    assert {path.name for path in output.iterdir() if path.is_dir()} == {"other"}
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_a_failed_replacement_leaves_the_old_one(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = write(bundle, tmp_path / "repository")
    before = {name: (output / name).read_bytes() for name in files(output) if (output / name).is_file()}

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OutputError, match="No space left"):
        write(bundle, output, force=True, slots=2)
    assert {name: (output / name).read_bytes() for name in files(output) if (output / name).is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_what_a_killed_process_left_is_removed(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / ".repository.partial-abcdefgh" / "m").mkdir(parents=True)
    write(bundle, tmp_path / "repository")
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]
