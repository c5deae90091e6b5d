"""What could never be served is refused in one line, before anything is written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sts_export.cli import main
from sts_export.errors import OutputError, RequestError
from sts_export.triton.repository.names import check_model_name, dns_label
from tests.triton.repository.helpers import add_engines, files, write, write_wheel


def other_schema(bundle: Path) -> None:
    file = bundle / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 2}))


def foreign_engines(bundle: Path) -> None:
    folder = add_engines(bundle)
    record = json.loads((folder / "build.json").read_text())
    (folder / "build.json").write_text(json.dumps({**record, "bundle": "0" * 64}))


def cut_engines(bundle: Path) -> None:
    (add_engines(bundle) / "selector.engine").write_bytes(b"")


# Case -> the bundle, what is changed of a copy of it, arguments, the line.
CASES: dict[str, tuple[str, Callable[[Path], object] | None, list[str], str]] = {
    "no-bundle": ("missing", None, [], "does not exist"),
    "checkpoint": ("checkpoint", None, [], "is a checkpoint, not a bundle"),
    "other-schema": ("bundle", other_schema, [], "was written by an older sts-export"),
    "damaged": ("bundle", lambda bundle: (bundle / "manifest.json").write_text("{"), [], "is damaged"),
    "altered": ("bundle", lambda bundle: (bundle / "selector.onnx").write_bytes(b""), [], "was altered"),
    "bfloat16": ("bfloat16", None, [], "is in bfloat16, which onnxruntime cannot run; give --gpus"),
    "linked": ("linked", None, [], "which a container would not see; export with --weights copy, or give --link"),
    "engines-missing": ("bundle", None, ["--gpus=0", "--backend=tensorrt"], "are missing; build them with sts-export build "),
    "rtx-missing": ("bundle", add_engines, ["--gpus=0", "--backend=tensorrt-rtx"], "--runtime tensorrt-rtx, or let the cont"),
    "engines-foreign": ("bundle", foreign_engines, ["--gpus=0", "--backend=tensorrt"], "are not complete, or of another"),
    "engines-cut": ("bundle", cut_engines, ["--gpus=0", "--backend=tensorrt"], "are not complete, or of another"),
    "engines-small": ("bundle", add_engines, ["--gpus=0", "--slots=5"], "up to 4 requests together, not 5; build them again"),
    "quantized-gpu": ("quantized", None, ["--gpus=0"], "is quantized (int8), which is for ONNX Runtime on the CPU"),
    "gpu-backend": ("bundle", None, ["--backend=onnxruntime-cuda"], "runs on GPUs; say on which, such as --gpus 0"),
    "cpu-backend": ("bundle", None, ["--backend=onnxruntime", "--gpus=0"], "runs on the CPU: leave --gpus 0 out"),
    "gpus-threads": ("bundle", None, ["--gpus=0", "--threads=1"], "threads are for the CPU: leave --threads or --gpus out"),
    "gpus-words": ("bundle", None, ["--gpus=all"], "--gpus are numbers such as 0 or 0,1, not 'all'"),
    "gpus-twice": ("bundle", None, ["--gpus=0,0"], "GPUs are different numbers from 0 on"),
    "build-without-gpu": ("bundle", None, ["--build-at-start"], "needs no engines: leave --build-at-start out"),
    "build-on-cuda": ("bundle", None, ["--build-at-start", "--gpus=0", "--backend=onnxruntime-cuda"], "needs no engines"),
    "link-build": ("bundle", None, ["--link", "--build-at-start", "--gpus=0"], "--build-at-start is for a container"),
    "link-wheel": ("bundle", None, ["--link", "--wheel=x.whl"], "--wheel is for a container, which cannot follow a link"),
    "instances": ("bundle", None, ["--instances=0"], "instances must be at least 1"),
    "slots": ("bundle", None, ["--slots=0"], "slots must be at least 1"),
    "queue": ("bundle", None, ["--max-queue-size=0"], "max_queue_size must be at least 1"),
    "wait": ("bundle", None, ["--longest-wait=0"], "--longest-wait must be seconds above 0"),
    "threads": ("bundle", None, ["--threads=0"], "threads must be at least 1"),
    "feature-cache": ("bundle", None, ["--feature-cache=much"], "--feature-cache is a size"),
    "max-picture": ("bundle", None, ["--max-picture=0"], "0 bytes are too few for a picture"),
    "host": ("bundle", None, ["--allow-image-hosts=http://x"], "http://x"),
    "image-folder": ("bundle", None, ["--allow-image-folder=no-such"], "is no folder of pictures"),
    "name": ("bundle", None, ["--model-name=a b"], "a model cannot be called 'a b'"),
    "name-of-a-file": ("bundle", None, ["--model-name=Readme.md"], "as a file of the repository is"),
    "wheel-missing": ("bundle", None, ["--wheel=none.whl"], "there is no wheel of sts-export none.whl"),
    "wheel-none": ("bundle", None, [f"--wheel={__file__}"], "is no wheel; give a wheel of sts-export"),
    "kernels-folder": ("bundle", None, ["--kernels=.", "--gpus=0", "--backend=tensorrt", "--build-at-start"], "is no checkout"),
    "kernels-on-cpu": ("bundle", None, ["--kernels=."], "are for TensorRT, not for onnxruntime"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_refused(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, change, arguments, said = CASES[case]
    bundle = origin / name
    if change is not None:
        bundle = Path(shutil.copytree(bundle, tmp_path / "copies" / name))
        change(bundle)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = files(tmp_path)
    assert main(["triton", str(bundle), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("sts-export: ") and printed.err.count("\n") == 1
    assert said in printed.err and files(tmp_path) == before


# Places


def test_what_exists_is_not_replaced(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "repository"
    write(bundle, output)
    with pytest.raises(OutputError, match=r"exists; choose another --output or replace it with --force"):
        write(bundle, output)


@pytest.mark.parametrize("kind", ["empty folder", "folder", "file", "broken link", "other repository"])
def test_force_replaces_nothing_else(bundle: Path, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "output"
    if kind == "file":
        output.write_text("mine")
    elif kind == "broken link":
        output.symlink_to("nowhere")
    else:
        output.mkdir()
        if kind != "empty folder":
            (output / "mine").write_text("mine")
        if kind == "other repository":
            (output / "model").mkdir()
            (output / "model" / "config.pbtxt").write_text('name: "model"')
    before = files(tmp_path)
    with pytest.raises(OutputError, match="is no model repository of sts-export, so --force does not replace it"):
        write(bundle, output, force=True)
    assert files(tmp_path) == before


@pytest.mark.parametrize("inside", ["", "repository", "a/b"])
def test_an_output_inside_the_bundle(bundle: Path, tmp_path: Path, inside: str) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    (tmp_path / "alias").symlink_to(own)
    before = files(own)
    for folder in (own, tmp_path / "alias"):
        with pytest.raises(OutputError, match="lies inside the bundle; choose another --output"):
            write(own, folder / inside, force=True)
    assert files(own) == before


def test_a_bundle_inside_the_output(bundle: Path, tmp_path: Path) -> None:
    """Also the copy in a repository of ours: --force would remove it before it is read."""
    output = write(bundle, tmp_path / "repository")
    with pytest.raises(OutputError, match="holds the bundle itself; choose another --output"):
        write(output / "m" / "1" / "bundle", output, force=True)
    assert (output / "m" / "1" / "bundle" / "manifest.json").is_file()


def test_a_parent_that_is_a_file(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="choose another --output"):
        write(bundle, tmp_path / "file" / "repository")


# Wheels


@pytest.mark.parametrize(
    ("name", "package", "content", "said"),
    [
        ("other-1-py3-none-any.whl", "other", "sts_export/triton/__init__.py", "is no wheel of sts-export; give one"),
        ("sts_export-0.1.0 (1).whl", "sts_export", "sts_export/triton/__init__.py", "is no wheel of sts-export; give one"),
        ("sts_export-0.0.1-py3-none-any.whl", "sts_export", "sts_export/__init__.py", "is too old: it has no"),
        ("sts_export_kernels-1-py3-none-any.whl", "sts_export_kernels", "sts_export_kernels/__init__.py", "is no wheel of"),
    ],
)
def test_other_wheels(bundle: Path, tmp_path: Path, name: str, package: str, content: str, said: str) -> None:
    wheel = write_wheel(tmp_path / name, package, content)
    with pytest.raises(RequestError, match=re.escape(said)):
        write(bundle, tmp_path / "repository", wheel=wheel)
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "onnxruntime-cuda"])
def test_a_checkout_is_for_tensorrt(bundle: Path, tmp_path: Path, backend: str) -> None:
    options: dict[str, Any] = {"gpus": (0,), "backend": backend, "build_at_start": backend == "tensorrt-rtx"}
    with pytest.raises(RequestError, match="plugins that are compiled from a checkout are for TensorRT"):
        write(bundle, tmp_path / "repository", kernels=Path(__file__).parents[3], **options)


# Names


@pytest.mark.parametrize("name", ["a", "7", "llava-1.5-7b-b64", "A_b.c", "x" * 100])
def test_names_that_are_taken(name: str) -> None:
    check_model_name(name)
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", dns_label(name))


@pytest.mark.parametrize("name", ["", ".", "-a", "_a", "a/b", "a b", "a\n", "ä", "a$b", "a;b", "..", "x" * 101, "entrypoint"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="a model cannot be called") as caught:
        check_model_name(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(("name", "label"), [("LLaVA_1.5", "llava-1-5"), ("7b", "model-7b"), ("a--.b_", "a-b")])
def test_names_for_kubernetes(name: str, label: str) -> None:
    assert dns_label(name) == label
