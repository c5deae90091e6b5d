"""`sts-export build` as it is typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sts_export.cli import main
from tests.cli.helpers import Work, error_line

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'sts-export[tensorrt-rtx]'")


def test_build_prints_a_table_then_reuses(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(work.copy("bundle"))
    assert main(["build", bundle, "--runtime", "tensorrt-rtx", "--max-batch", "2"]) == 0
    first = capsys.readouterr().out.splitlines()
    assert first[0].startswith(f"{bundle}/engines/tensorrt-rtx/portable: tensorrt-rtx 1.")
    assert [line.split()[0] for line in first[1:]] == ["vision_encoder", "selector", "llm_lower", "llm_upper"]
    assert main(["build", bundle, "--runtime", "tensorrt-rtx", "--max-batch", "2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["max_batch"] == 2 and list(record["graphs"]) == ["vision_encoder", "selector", "llm_lower", "llm_upper"]
    assert main(["build", bundle, "--runtime", "tensorrt-rtx", "--max-batch", "2"]) == 0
    assert capsys.readouterr().out.count("up to date") == 4
    assert main(["inspect", bundle, "--check"]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--runtime", "openvino"], "invalid choice: 'openvino'"),
        (["--runtime", "tensorrt-rtx", "--target", "sm_50"], "does not build for 'sm_50'"),
        (["--runtime", "tensorrt-rtx", "--max-batch", "0"], "--max-batch must be between 1 and 256"),
        (["--runtime", "tensorrt-rtx", "--plugins", "x.so"], "takes no plugins"),
    ],
)
def test_wrong_options(work: Work, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert main(["build", work.bundle, *arguments]) == 2
    assert says in error_line(capsys)


def test_a_damaged_bundle_is_not_built(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = work.copy("bundle")
    (bundle / "llm_lower.onnx").unlink()
    assert main(["build", str(bundle), "--runtime", "tensorrt-rtx"]) == 2
    assert "llm_lower.onnx is missing" in error_line(capsys)


def test_exporting_again_drops_the_old_engines(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """They would be refused anyway."""
    bundle = work.copy("bundle")
    (bundle / "engines" / "tensorrt-rtx" / "portable").mkdir(parents=True)
    shutil.move(str(bundle), work.output)
    assert main(work.export("--force")) == 0
    assert not (Path(work.output) / "engines").exists()
