"""The library of custom operators: which file it is, what is refused, and that CUDA sessions take it.

The libraries are small ones compiled here; those whose operator is real change what a session answers.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from sts_export import Pipeline
from sts_export.backends.onnxruntime import operators
from sts_export.backends.onnxruntime.operators import LIBRARY, find_operators, missing_operators
from sts_export.backends.onnxruntime.sessions import SessionFactory
from sts_export.bundle.manifest import open_bundle
from sts_export.errors import BackendError, RequestError
from sts_export.native import libraries
from sts_export.pruning.registry import plugin_names
from sts_export.testing.checkpoints import random_image
from tests.backends.onnxruntime.fake_gpu import FakeGpu
from tests.support.pipelines import export_to
from tests.support.shared_libraries import OTHER_MACHINE, compiled, headers_only, operators_source

pytestmark = pytest.mark.usefixtures("no_libraries")
NEWEST = int(ort.__version__.split(".")[1])
# A status of ONNX Runtime, made by the functions at its places 0 and 2 of OrtApiBase and OrtApi: an error in a library's words.
REFUSES = (
    "struct Base { const void *(*get)(unsigned); };\n"
    "typedef void *(*Make)(int, const char *);\n"
    "void *RegisterCustomOps(void *options, const struct Base *base) {\n"
    '  return (*(Make *)base->get(1))(1, "no such\\nluck");\n'
    "}"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(operators_source(), tmp_path_factory.mktemp("operators") / LIBRARY.file_name)


@pytest.fixture(scope="module")
def plain(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose stages have no kernel."""
    return export_to(checkpoint, tmp_path_factory.mktemp("plain") / "bundle", keep=None, stage1="keep-all", stage2="keep-all")


def test_every_kernel_has_words_for_its_absence() -> None:
    assert set(operators._WITHOUT_IT) == set(plugin_names())
    assert operators.OPERATORS_VERSION == 1


def test_given_found_or_absent(bundle: Path, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_bundle(bundle)
    assert find_operators(opened, None) is None
    assert find_operators(opened, str(library)) == find_operators(opened, library) == library
    monkeypatch.setattr(libraries, "own_folders", lambda: [tmp_path, library.parent])
    assert find_operators(opened, None) == library


def wrong_libraries(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name -> a file that is not to be used, and why."""
    whole = compiled(operators_source(), folder / "whole.so").read_bytes()
    contents = {
        "text": (b"#!/bin/sh\n", "it is no shared library for Linux"),
        "cut": (whole[: len(whole) // 2], "it is damaged"),
        "other-machine": (headers_only(LIBRARY.exports, OTHER_MACHINE), "it is for "),
        "tensorrt": (headers_only(["getCreators", "setLoggerFinder"]), "it is another library, without RegisterCustomOps"),
        "headers-alone": (headers_only(LIBRARY.exports), "it cannot be loaded ("),
    }
    for name, (content, _) in contents.items():
        (folder / f"{name}.so").write_bytes(content)
    sources = {
        "new-operators": (operators_source(version=2), "its operators have version 2, and this sts-export takes version 1"),
        "old-operators": (operators_source(version=0), "its operators have version 0, and this sts-export takes version 1"),
        "new-api": (
            operators_source(api=NEWEST + 1),
            f"it needs ONNX Runtime 1.{NEWEST + 1} or later, and {ort.__version__} is installed",
        ),
        "refuses": (operators_source(registers=REFUSES), "ONNX Runtime refuses it ("),
        "unresolved": (operators_source() + "int absent(void); int f(void) { return absent(); }", "it cannot be loaded ("),
    }
    for name, (source, _) in sources.items():
        compiled(source, folder / f"{name}.so", "-Wl,-z,now")
    return {name: (folder / f"{name}.so", reason) for name, (_, reason) in {**contents, **sources}.items()}


def test_wrong_libraries(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Given, one line says what is wrong and what to do; found, they are passed over with one line."""
    opened = open_bundle(bundle)
    for name, (file, reason) in wrong_libraries(tmp_path).items():
        with pytest.raises(RequestError) as caught:
            find_operators(opened, str(file))
        said = str(caught.value)
        assert said.startswith(f"{file} cannot be used as operator library: {reason}"), name
        assert "\n" not in said and "; build it with scripts/build_plugins" in said and "leave --plugins out" in said
        found = tmp_path / name / LIBRARY.file_name
        found.parent.mkdir()
        found.write_bytes(file.read_bytes())
        monkeypatch.setattr(libraries, "own_folders", lambda folder=found.parent: [folder])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert find_operators(opened, None) is None, name
        (record,) = caplog.records
        message = record.getMessage()
        assert message.startswith(f"note: {found} is not used: {reason}") and "\n" not in message
    with pytest.raises(RequestError, match=r"^there is no operator library .*nowhere\.so; build it with scripts/build_plugins"):
        find_operators(opened, "nowhere.so")


def test_the_oldest_and_the_newest_interface_are_taken(bundle: Path, tmp_path: Path) -> None:
    for api in (1, NEWEST):
        file = compiled(operators_source(api=api), tmp_path / f"api{api}.so")
        assert find_operators(open_bundle(bundle), file) == file


def test_kernels_for_other_gpus(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They would fail in every request.  Without a GPU nothing is asked."""
    file = compiled(operators_source(refusal='"no kernel image"'), tmp_path / LIBRARY.file_name)
    opened = open_bundle(bundle)
    assert find_operators(opened, file) == file
    monkeypatch.setattr(operators, "count_gpus", lambda: 1)
    with pytest.raises(RequestError, match=r"as operator library: its kernels do not run on this GPU \(no kernel image\)"):
        find_operators(opened, file)
    monkeypatch.setattr(libraries, "own_folders", lambda: [tmp_path])
    with caplog.at_level(logging.WARNING):
        assert find_operators(opened, None) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"note: {file} is not used: its kernels do not run on this GPU (no kernel image)"
    ]
    right = compiled(operators_source(), tmp_path / "right.so")
    assert find_operators(opened, right) == right


def test_truncated_libraries_never_reach_the_loader(library: Path, bundle: Path, tmp_path: Path) -> None:
    """Loading one ends the process with SIGBUS; here the process must live to say so for every length."""
    content, step = library.read_bytes(), 251
    code = (
        "import sys; from pathlib import Path; from sts_export.bundle.manifest import open_bundle\n"
        "from sts_export.backends.onnxruntime.operators import find_operators\n"
        "from sts_export.errors import RequestError\n"
        "bundle, content = open_bundle(sys.argv[1]), Path(sys.argv[2]).read_bytes()\n"
        "file, refused = Path(sys.argv[3]) / 'cut.so', 0\n"
        f"for length in range(0, len(content), {step}):\n"
        "    file.write_bytes(content[:length])\n"
        "    try:\n        find_operators(bundle, file)\n"
        "    except RequestError:\n        refused += 1\n"
        "print(refused)\n"
    )
    command = [sys.executable, "-c", code, str(bundle), str(library), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(range(0, len(content), step))


def test_a_bundle_whose_stages_have_no_kernel_looks_for_none(
    plain: Path, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs its graphs as they are, and nothing is said; a wrong file is refused all the same."""
    opened = open_bundle(plain)
    monkeypatch.setattr(libraries, "own_folders", lambda: [library.parent])
    assert find_operators(opened, None) is None and missing_operators(opened.manifest) is None
    assert find_operators(opened, library) is None
    with pytest.raises(RequestError, match="there is no operator library"):
        find_operators(opened, tmp_path / "nowhere.so")


# In sessions


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that options of sessions were told to load."""
    files: list[str] = []
    register = ort.SessionOptions.register_custom_ops_library

    def remember(options: ort.SessionOptions, file: str) -> None:
        files.append(file)
        register(options, file)

    monkeypatch.setattr(ort.SessionOptions, "register_custom_ops_library", remember)
    return files


@pytest.mark.parametrize("given", [True, False])
def test_cuda_sessions_take_the_library(
    faked: FakeGpu,
    bundle: Path,
    library: Path,
    registered: list[str],
    given: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the result names it."""
    if not given:
        monkeypatch.setattr(libraries, "own_folders", lambda: [library.parent])
    with caplog.at_level(logging.WARNING):
        vlm = Pipeline(bundle, plugins=library) if given else Pipeline(bundle, backend="onnxruntime-cuda")
    result = vlm.generate("What?", random_image(0), max_new_tokens=2, ignore_eos=True)
    assert vlm.backend_name == "onnxruntime-cuda" and not caplog.records
    assert vlm.operators == result.operators == result.to_json()["operators"] == LIBRARY.file_name
    assert set(registered) == {str(library)} and len(registered) >= 1 + 4  # a trial, then four graphs


def test_cpu_sessions_do_not(bundle: Path, library: Path, registered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it lies: the functions of the graphs are faster there."""
    monkeypatch.setattr(libraries, "own_folders", lambda: [library.parent])
    vlm = Pipeline(bundle, backend="onnxruntime")
    result = vlm.generate("What?", random_image(0), max_new_tokens=2, ignore_eos=True)
    assert result.operators is None and vlm.operators is None and not registered


def test_without_the_library_its_cost_is_said_once(
    faked: FakeGpu, bundle: Path, plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        vlm = Pipeline(bundle, backend="onnxruntime-cuda")
        result = vlm.generate("What?", random_image(0), max_new_tokens=2, ignore_eos=True)
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("note: without libsts_onnxruntime.so ONNX Runtime runs stage 1 as a loop") and "\n" not in message
    assert "one host synchronization each" in message and "scripts/build_plugins" in message and "kernels_wheel" in message
    assert result.operators is None and json.loads(json.dumps(result.to_json()))["operators"] is None
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert Pipeline(plain, backend="onnxruntime-cuda").operators is None
    assert not caplog.records


def test_a_library_that_goes_bad_between_the_trial_and_the_sessions(tmp_path: Path) -> None:
    file = compiled(operators_source(registers=REFUSES), tmp_path / "refuses.so")
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "identity",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        ),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=10,
    ).SerializeToString()
    with pytest.raises(BackendError, match=r"ONNX Runtime failed: .*no such luck"):
        SessionFactory("cpu", 1, file).open(model)
    (answer,) = SessionFactory("cpu", 1).open(model).run(None, {"x": np.ones(1, np.float32)})
    assert answer == 1
