"""`verify` from the command line: what it notices, and what it needs; the rest is in tests/verification/test_answers.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sts_export.bundle.records import record_file
from sts_export.cli import main
from sts_export.exporting.exporter import ExportRequest, export
from tests.cli.helpers import Work

VERIFY = ["--pairs", "1", "--max-new-tokens", "3"]


def alter_a_weight(bundle: Path) -> None:
    """One exponent bit of one weight of the head; the hash in the manifest follows."""
    file = bundle / "weights.safetensors"
    from sts_export.checkpoints.safetensors_header import read_header

    entry = read_header(file)[0]["language_model.lm_head.weight"]
    content = bytearray(file.read_bytes())
    content[entry.offset + 3] ^= 0x08  # sign and exponent of the first float: 2**16 times as large, or as small
    content[entry.offset + 2] ^= 0x80
    file.write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["weights"]["files"][0]["sha256"] = record_file(file).sha256
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def alter_the_graph(bundle: Path) -> None:
    """The selection takes another token first; the hash in the manifest follows."""
    other = bundle.with_name("other")
    export(
        ExportRequest(
            str(bundle.parent / "checkpoint"),
            other,
            budget="12",
            max_prompt_tokens=60,
            max_new_tokens=20,
            choices={"anchor": "first"},
        )
    )
    shutil.copy(other / "selector.onnx", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    record = record_file(bundle / "selector.onnx")
    manifest["graphs"]["selector"].update(size=record.size, sha256=record.sha256)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("alter", [alter_a_weight, alter_the_graph])
def test_verify_notices_what_hashes_do_not(
    work: Work, capsys: pytest.CaptureFixture[str], alter: Callable[[Path], None]
) -> None:
    work.copy("checkpoint")
    bundle = work.copy("bundle")
    alter(bundle)
    assert main(["inspect", str(bundle), "--check"]) == 0
    capsys.readouterr()
    assert main(["verify", str(bundle), *VERIFY, "--image", work.picture]) == 1
    printed = capsys.readouterr()
    assert "FAILED: 1 pairs" in printed.out and printed.err == ""


def test_verify_without_torch_says_what_to_install(work: Work) -> None:
    code = "import sys; sys.modules['torch'] = None; from sts_export.cli import main; sys.exit(main(sys.argv[1:]))"
    result = subprocess.run([sys.executable, "-c", code, "verify", work.bundle], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "sts-export: verify needs PyTorch: pip install 'sts-export[reference]'\n"
