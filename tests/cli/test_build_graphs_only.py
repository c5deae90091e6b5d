"""`build --graphs-only`, what `inspect` and a new export make of it, and `verify` on engines, from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sts_export.cli import main
from sts_export.tensorrt.portable.polygraphy_script import Agreement
from sts_export.verification import engines as compare
from sts_export.verification import engines_and_answers as verify
from sts_export.verification.answers import verify as verify_answers
from sts_export.verification.engines import CaseReport, CompareReport
from tests.cli.helpers import Work, error_line, tree
from tests.support.bundles import GRAPHS

GRAPHS_ONLY = ["--graphs-only", "--tensorrt-version", "10.3"]


def test_writes_graphs_and_commands(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = work.copy("bundle")
    assert main(["build", str(bundle), *GRAPHS_ONLY]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"{bundle}: commands for tensorrt 10.3" in printed.out
    assert "bash engines/commands-tensorrt-10.3.sh build" in printed.out and "needs libsts_plugins.so" in printed.out
    assert main(["build", str(bundle), *GRAPHS_ONLY, "--no-plugins", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["graphs"] == {name: f"{name}.tensorrt-10.3.onnx" for name in GRAPHS}
    assert (report["plugins"], report["version"], report["aliased_caches"]) == (False, "10.3", False)
    assert all((bundle / file).is_file() for file in (*report["graphs"].values(), report["commands"]))


def test_a_library_and_a_new_version(work: Work, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bundle, library = work.copy("bundle"), tmp_path / "library.so"
    library.write_bytes(b"no library")
    command = ["build", str(bundle), "--graphs-only", "--tensorrt-version", "12.0", "--plugins", str(library)]
    assert main(command) == 2
    assert f"{library} is no shared library for Linux on x86-64 or aarch64" in error_line(capsys)
    library.write_bytes(b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + b"\x03\x00\xb7\x00")  # ET_DYN, EM_AARCH64
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "libsts_plugins.so was copied into the bundle; it is for aarch64 machines" in printed
    assert "needs libsts_plugins.so" not in printed and "newer than 11.1, the newest version known" in printed
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["library"] == "aarch64" and len(report["notes"]) == 1


def test_every_command_still_takes_the_bundle(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = work.copy("bundle")
    assert main(["build", str(bundle), *GRAPHS_ONLY]) == 0
    assert main(["build", str(bundle), "--graphs-only", "--runtime", "tensorrt-rtx"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(bundle), "--check"]) == 0
    assert "engines/commands-tensorrt-10.3.sh, engines/commands-tensorrt-rtx.sh" in capsys.readouterr().out
    assert main(work.run("--max-new-tokens", "1", bundle=str(bundle))) == 0


def test_a_new_export_replaces_them(work: Work) -> None:
    """They belong to the export that they were made from."""
    work.copy("checkpoint")
    assert main(work.export()) == 0
    clean = tree(Path(work.output))
    assert main(["build", work.output, *GRAPHS_ONLY]) == 0
    assert tree(Path(work.output)) > clean
    assert main(work.export("--force")) == 0
    assert tree(Path(work.output)) == clean


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tensorrt-version", "10.3"], "--tensorrt-version belongs to --graphs-only"),
        ([*GRAPHS_ONLY, "--target", "sm_89"], "--graphs-only builds nothing; leave --target out"),
        (["--graphs-only", "--tensorrt-version", "10.1"], "TensorRT 10.1 is too old"),
        (["--graphs-only", "--tensorrt-version", "x"], "'x' is not a TensorRT version"),
        ([*GRAPHS_ONLY, "--runtime", "tensorrt-rtx"], "TensorRT for RTX takes the bundle's own graphs"),
        ([*GRAPHS_ONLY, "--max-batch", "0"], "--max-batch must be between 1 and 256"),
    ],
)
def test_wrong_options(work: Work, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    bundle = work.copy("bundle")
    before = tree(bundle)
    assert main(["build", str(bundle), *options]) == 2
    assert message in error_line(capsys)
    assert tree(bundle) == before


def test_linked_weights(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(work.export("--weights", "link")) == 0
    capsys.readouterr()
    assert main(["build", work.output, *GRAPHS_ONLY]) == 2
    assert "links to its weights" in error_line(capsys)


# verify


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_verify_without_engines(work: Work, capsys: pytest.CaptureFixture[str], backend: str) -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install 'polygraphy>=0.50'")
    assert main(["verify", work.bundle, "--backend", backend]) == 2
    assert f"has no {backend} engines; build them: sts-export build {work.bundle}" in error_line(capsys)


def report_of(passed: bool) -> CompareReport:
    difference = 0.0 if passed else 3.0
    case = CaseReport("vision_encoder", {"visual_features": Agreement("float", difference, difference, passed)})
    return CompareReport("tensorrt", "10.3.0.26", "orin-sm_87", "float32", (case,))


@pytest.mark.parametrize("passed", [True, False])
def test_verify_where_the_checkpoint_is_not(
    work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, passed: bool
) -> None:
    """As on a Jetson: the graphs alone decide, and what was left out is said."""
    asked = []

    def engines(bundle: str, runtime: str, **options: object) -> CompareReport:
        asked.append((bundle, runtime, options))
        return report_of(passed)

    monkeypatch.setattr(verify, "compare_engines", engines)
    checkpoint = work.copy("checkpoint")
    assert main(work.export(model=checkpoint)) == 0
    shutil.rmtree(checkpoint)
    capsys.readouterr()
    arguments = ["verify", work.output, "--backend", "tensorrt", "--image", work.picture, "--prompt", "What?"]
    assert main(arguments) == (0 if passed else 1)
    printed = capsys.readouterr().out
    assert ("passed: tensorrt 10.3.0.26" if passed else "FAILED: tensorrt 10.3.0.26") in printed
    assert f"the source checkpoint {checkpoint} is not here; give it with --checkpoint" in printed
    assert main([*arguments, "--json"]) == (0 if passed else 1)
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["graphs"]["passed"], report["answers"]) == (passed, passed, None)
    assert "is not here" in report["left_out"]
    assert asked == [(work.output, "tensorrt", {"image": work.picture, "prompt": "What?"})] * 2
    # One that was named has to be there.
    assert main([*arguments, "--checkpoint", str(checkpoint)]) == 2
    assert "sts-export: " in capsys.readouterr().err


def test_verify_goes_on_to_the_answers(work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the checkpoint, answers of the engines are compared with the reference; ONNX Runtime stands in for them."""
    used: list[str] = []

    def on_onnxruntime(*arguments: object, backend: str, **options: object) -> object:
        used.append(backend)
        return verify_answers(*arguments, backend="onnxruntime", **options)  # type: ignore[arg-type]

    monkeypatch.setattr(verify, "compare_engines", lambda *_, **__: report_of(True))
    monkeypatch.setattr(verify, "verify", on_onnxruntime)
    arguments = ["verify", work.bundle, "--backend", "tensorrt", "--pairs", "1", "--max-new-tokens", "2", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["answers"]["passed"] and report["left_out"] is None
    assert len(report["answers"]["pairs"]) == 1 and used == ["tensorrt"]


def test_verify_without_a_gpu(work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install 'polygraphy>=0.50'")
    monkeypatch.setattr(compare, "open_engines", lambda *_: object())
    monkeypatch.setattr(compare, "current_gpu", lambda: None)
    assert main(["verify", work.bundle, "--backend", "tensorrt"]) == 1
    assert "verify --backend tensorrt runs the engines, and no CUDA GPU is found here" in error_line(capsys)
