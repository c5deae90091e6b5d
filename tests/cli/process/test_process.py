"""The command in processes of its own: benchmarks, offline, broken pipes, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.cli.helpers import Work


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sts_export.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


def test_bench_json(work: Work) -> None:
    two = ("bench", work.bundle, "--against", work.bundle, "--backend=onnxruntime")
    result = process(*two, "--repeats=2", "--max-new-tokens=3", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    reports = json.loads(result.stdout)
    assert len(reports) == 2
    for report in reports:
        metrics = {"first_token_ms", "decode_ms_per_token", "selection_ms"}
        assert report.keys() == {"name", "backend", "operators", "load_s", "peak_rss_mb", "values", *metrics}
        assert (report["name"], report["backend"], report["operators"]) == (work.bundle, "onnxruntime", None)
        assert report["values"].keys() == metrics
        for metric in metrics:
            values = report["values"][metric]
            assert len(values) == 2 and all(value > 0 for value in values)
            assert report[metric] == pytest.approx(sum(values) / 2)
        assert report["load_s"] > 0 and report["peak_rss_mb"] > 10


def test_errors_of_a_bench_process_are_one_line(work: Work) -> None:
    result = process("bench", work.bundle, "--image", "none.png", "--repeats=1")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "sts-export: image 'none.png' does not exist; check the path\n"


def test_offline_by_environment(work: Work) -> None:
    result = process(*work.export(model="org/name"), HF_HUB_OFFLINE="1", HF_HOME=str(work.folder / "cache"))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and "org/name is not in the local cache" in result.stderr
    assert not (work.folder / "new").exists()


def test_a_reader_that_leaves_early(work: Work) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        command = [sys.executable, "-m", "sts_export.cli", "inspect", work.bundle, "--json"]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (1, "")


_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails, looking for it finds nothing
sys.modules["torchvision"] = None
import sts_export
from sts_export.cli import main
for argv in sys.argv[1:]:
    try:
        code = main(argv.split("\\t"))
    except SystemExit as end:
        code = end.code
    assert code == 0, (argv, code)
assert sys.modules["torch"] is None
"""


def test_everything_but_verify_works_without_torch(work: Work) -> None:
    commands = [
        ["--help"],
        work.export(),
        work.run("--max-new-tokens", "2", "--json", bundle=work.output),
        ["inspect", work.output],
        ["show", work.output, "--image", work.picture, "--prompt", "What?", "-o", str(work.folder / "k.png")],
    ]
    command = [sys.executable, "-c", _WITHOUT_TORCH, *("\t".join(argv) for argv in commands)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_help_loads_nothing_heavy() -> None:
    """Although it imports every command."""
    code = """
import atexit, sys
from sts_export.cli import main
atexit.register(lambda: print(*sorted(sys.modules), sep="\\n", file=sys.stderr))
main(["--help"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = set(result.stderr.split())
    assert result.returncode == 0 and "sts_export.cli.commands.show" in loaded
    assert not loaded & {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "PIL", "torch", "transformers"}


def test_importing_the_package_loads_no_torch() -> None:
    """Although it is installed here."""
    code = (
        "import sys, sts_export, sts_export.exporting.exporter; from sts_export.cli.commands import load; "
        "load('export').make_parser(); "
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_exporting_needs_no_torch(work: Work) -> None:
    """Where it is installed, as here, transformers imports it."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None; from sts_export.cli import main; "
        "assert main(sys.argv[1:]) == 0"
    )
    result = subprocess.run([sys.executable, "-c", code, *work.export()], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
