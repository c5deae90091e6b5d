"""The training script as a whole, on a few pictures for a few steps."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scripts import train_demo
from scripts.demo_training.pictures import batch_rows


def run(work: Path, decoder_steps: int) -> Path:
    out = work / f"model-{decoder_steps}"
    options = {
        "--work": work / "work",
        "--pictures": 12,
        "--held-out": 3,
        "--tower-steps": 1,
        "--projector-steps": 1,
        "--decoder-steps": decoder_steps,
        "--pairs-steps": 1,
        "--out": out,
        "--out-pictures": work / "pictures",
    }
    code = train_demo.main([str(part) for pair in options.items() for part in pair])
    torch.set_flush_denormal(False)
    assert code == 0
    return out


def test_a_run_gives_a_checkpoint_and_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path, 1)
    said = re.search(r"generate agrees on (\d+) of (\d+) questions", capsys.readouterr().out)
    assert said is not None and said[1] == said[2] and int(said[2]) > 10
    weights = load_file(first / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert "| two pictures | " in (first / "README.md").read_text()
    listing = json.loads((tmp_path / "pictures" / "questions.json").read_text())
    assert list(listing) == [f"scene-{i}.png" for i in range(6)]
    features = next((tmp_path / "work").glob("train-*-features.npy")).stat().st_mtime_ns
    second = load_file(run(tmp_path, 2) / "model.safetensors")
    assert next((tmp_path / "work").glob("train-*-features.npy")).stat().st_mtime_ns == features
    tower = [name for name in weights if "vision_tower" in name]
    assert tower and all(torch.equal(weights[name], second[name]) for name in tower)
    head = next(name for name in weights if name.endswith("lm_head.weight"))
    assert not torch.equal(weights[head], second[head])


def test_an_epoch_takes_every_row_once() -> None:
    rows = [batch_rows(12, 3, seed=1, number=number).tolist() for number in range(8)]
    assert sorted(itertools.chain(*rows[:4])) == sorted(itertools.chain(*rows[4:])) == list(range(12))
    assert rows[:4] != rows[4:]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pictures", "7"], "--pictures must be at least 8, not 7"),
        (["--held-out", "1"], "--held-out must be at least 2, not 1"),
        (["--decoder-steps", "0"], "--decoder-steps must be at least 1, not 0"),
        (["--device", "nope"], "--device nope cannot be used here"),
        (["--work", "{file}/x"], "check disk and permissions"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    given = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert train_demo.main([*given, *(argument.format(file=file) for argument in arguments)]) in (1, 2)
    torch.set_flush_denormal(False)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error
    assert list(tmp_path.iterdir()) == [file]
