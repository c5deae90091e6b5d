"""`sts-export triton` from its command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sts_export.cli import main
from sts_export.triton.settings import ModelSettings
from tests.triton.repository.helpers import add_engines


def test_without_options(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """model_repository here, the model called as the bundle's folder is."""
    monkeypatch.chdir(tmp_path)
    assert main(["triton", str(origin / "bundle")]) == 0
    assert capsys.readouterr().out == "model_repository: bundle on onnxruntime, 8 slots; see its README.md\n"
    assert (tmp_path / "model_repository" / "bundle" / "config.pbtxt").is_file()


def test_every_option(origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "r"
    arguments = "--model-name m --slots 2 --max-queue-size 3 --longest-wait 4 --instances 2 --threads 1 --feature-cache 1MiB"
    arguments += " --no-prefix-reuse --allow-image-hosts a.org --allow-image-hosts b.org --max-picture 2MiB --with-encoder"
    folder = ["--allow-image-folder", str(tmp_path)]
    command = ["triton", str(origin / "quantized"), "-o", str(output), *arguments.split(), *folder]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{output}: m, m-encoder on onnxruntime, 2 slots; see its README.md\n"
    expected = ModelSettings(
        backend="onnxruntime",
        threads=1,
        slots=2,
        max_queue_size=3,
        longest_wait=4.0,
        feature_cache=1 << 20,
        reuse_prefixes=False,
        allow_image_hosts=("a.org", "b.org"),
        allow_image_folder=str(tmp_path),
        max_picture=2 << 20,
    )
    config = (output / "m" / "config.pbtxt").read_text()
    for key, text in expected.parameters().items():
        assert f'parameters {{ key: "{key}" value {{ string_value: "{text}" }} }}' in config
    assert "count: 2, kind: KIND_CPU" in config
    assert main(command) == 2 and main([*command, "--force"]) == 0


@pytest.mark.parametrize(
    ("engines", "arguments", "said"),
    [
        ([], [], "onnxruntime-cuda, 8 slots"),
        (["tensorrt"], [], "tensorrt, 4 slots"),
        (["tensorrt"], ["--slots=2"], "tensorrt, 2 slots"),
        (["tensorrt"], ["--backend=onnxruntime-cuda"], "onnxruntime-cuda, 8 slots"),
        (["tensorrt-rtx"], [], "tensorrt-rtx, 4 slots"),
        (["tensorrt", "tensorrt-rtx"], [], "tensorrt, 4 slots"),
        ([], ["--build-at-start"], "tensorrt, 8 slots"),
        ([], ["--build-at-start", "--backend=tensorrt-rtx"], "tensorrt-rtx, 8 slots"),
    ],
)
def test_the_best_backend_for_gpus(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], engines: list[str], arguments: list[str], said: str
) -> None:
    bundle = Path(shutil.copytree(origin / "bundle", tmp_path / "m"))
    for runtime in engines:
        add_engines(bundle, runtime)  # type: ignore[arg-type]
    assert main(["triton", str(bundle), "-o", str(tmp_path / "r"), "--gpus=0", *arguments]) == 0
    assert f"m on {said}; see" in capsys.readouterr().out


def test_the_help_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "triton" in capsys.readouterr().out
