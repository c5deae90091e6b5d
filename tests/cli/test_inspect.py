"""`inspect`: a bundle in words and numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sts_export.cli import main
from tests.cli.helpers import Work, error_line


def test_inspect(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", work.bundle]) == 0
    text = capsys.readouterr().out
    for expected in (
        "sts: K = 18, K' = 6 after layer 1",
        "12 visual tokens per decoder layer",
        "60 prompt + 36 visual (before pruning) + 20 new tokens",
    ):
        assert expected in text
    assert "sha256" not in text
    files = len(list(Path(work.bundle).iterdir())) - 1  # all but the manifest
    assert main(["inspect", work.bundle, "--check"]) == 0
    assert capsys.readouterr().out == f"{text}checked   {files} files were compared with their sha256 and agree\n"
    assert main(["inspect", work.bundle, "--json", "--check"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((Path(work.bundle) / "manifest.json").read_text())


def test_inspect_check_reads_every_file(
    work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = work.copy("bundle")
    content = bytearray((bundle / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (bundle / "weights.safetensors").write_bytes(content)
    monkeypatch.setattr("sts_export.bundle.records._HASH_ON_LOAD", 300_000)  # as if it were a large file
    assert main(["inspect", str(bundle)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(bundle), "--check"]) == 2
    assert "weights.safetensors was altered: its sha256 differs" in error_line(capsys)


def test_inspect_check_of_linked_weights(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*work.export(), "--weights=link"]) == 0
    files = len(list(Path(work.output).iterdir())) - 1
    capsys.readouterr()
    assert main(["inspect", work.output, "--check"]) == 0
    expected = f"{files} files were compared with their sha256 and agree; 1 linked weight file(s) by header and samples\n"
    assert capsys.readouterr().out.endswith(expected)
