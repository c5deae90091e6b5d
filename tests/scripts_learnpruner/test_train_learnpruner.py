"""The command on a small random model: what it writes, how it goes on, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scripts.learnpruner.scorer import Scorer, keep_mask, weights
from scripts.learnpruner.state import write_state
from scripts.train_learnpruner import main
from sts_export.checkpoints.selector_weights import open_selector_weights
from sts_export.pruning.stage1.learned import Learned
from sts_export.reference.pruning.stage1.learned import keep_probability
from sts_export.testing.checkpoints import RandomLlava, random_image, write_random_llava

torch.set_num_threads(1)
WIDTH = RandomLlava().vision_width
STEPS = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llava(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    entries = []
    for number in range(4):
        random_image(number).save(folder / "images" / f"{number}.png")
        for question, answer in (("What is on the table?", "the cat"), ("Where is the cat?", "in the picture")):
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            entries.append({"id": f"{number}", "image": f"{number}.png", "conversations": turns})
    (folder / "conversations.json").write_text(json.dumps(entries))
    return folder


Train = Callable[..., int]


@pytest.fixture(scope="module")
def train(checkpoint: Path, data: Path) -> Train:
    def command(output: Path, *more: str) -> int:
        fixed = [str(checkpoint), "--data", str(data), "-o", str(output), "--batch", "3"]
        fixed += [] if {"--budget", "--target-rate"} & {*more} else ["--budget", "9"]
        return main([*fixed, *(more or ("--steps", str(STEPS), "--save-every", "2"))])

    return command


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training that nothing stops writes."""
    file = tmp_path_factory.mktemp("whole") / "selector.safetensors"
    assert train(file) == 0
    return file


def test_what_it_writes(whole: Path) -> None:
    assert open_selector_weights(whole, Learned().own_weights, WIDTH).tensors.keys() == Learned().own_weights(WIDTH).keys()
    assert [path.name for path in whole.parent.iterdir()] == [whole.name]


class Killed(Exception):
    pass


@pytest.mark.parametrize("written", [0, 2, 3], ids=["before", "between", "at the end"])
def test_goes_on_as_if_never_stopped(
    train: Train, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Stopped when none, two or all of its three states were written."""
    stopped = tmp_path / "stopped.safetensors"
    count = 0

    def write_or_die(*arguments: object) -> None:
        nonlocal count
        if count == written:
            raise Killed
        count += 1
        write_state(*arguments)  # type: ignore[arg-type]

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("scripts.learnpruner.training.write_state", write_or_die)
        patch.setattr("scripts.learnpruner.training.forget", die)
        with pytest.raises(Killed):
            train(stopped)
    stopped.unlink(missing_ok=True)
    assert train(stopped) == 0
    assert stopped.read_bytes() == whole.read_bytes()


def test_seeds(train: Train, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for file, seed in zip(files, ("1", "1", "2"), strict=True):
        assert train(file, "--steps", "2", "--seed", seed) == 0
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_what_is_refused(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "selector.safetensors"

    def refusal(*more: str, output: Path = file) -> str:
        assert train(output, *more) == 2
        said = capsys.readouterr().err.splitlines()
        assert said[-1].startswith("train_learnpruner: ")
        return said[-1]

    assert "--steps must be at least 1" in refusal("--steps", "0")
    assert "--target-rate must be in (0, 1]" in refusal("--target-rate", "1.5")
    assert "must end with .safetensors" in refusal(output=tmp_path / "selector.pt")
    assert "no folder; make it" in refusal(output=tmp_path / "none" / "selector.safetensors")
    assert not (tmp_path / "none").exists()
    assert "budget 99 is unreachable" in refusal("--budget", "99")
    assert "no answer of step 1 fits into 40 rows with its picture; raise --max-rows" in refusal("--max-rows", "40")
    state = tmp_path / "selector.state.safetensors"
    state.write_bytes(b"no state")
    assert "is no state of a training; delete it" in refusal()
    state.unlink()
    file.write_bytes(b"there already")
    assert "exists; choose another --output or replace it with --force" in refusal()


def test_another_trainings_state(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "selector.safetensors"
    monkeypatch.setattr("scripts.learnpruner.training.forget", lambda _: None)
    assert train(file, "--steps", "1") == 0
    assert train(file, "--steps", "1", "--seed", "1", "--rate", "0.1", "--force") == 2
    assert "is the state of a training with another rate, seed; delete it" in capsys.readouterr().err


def test_standardization_is_in_the_weights() -> None:
    """Stage 1's own formula on features as they are keeps what the scorer kept in training."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, WIDTH, generator=generator) * torch.rand(WIDTH, generator=generator) * 30 + 5
    scorer = Scorer(WIDTH, seed=1)
    scorer.standardize([features[:20], features[20:]])
    logits = scorer(features)
    torch.testing.assert_close(keep_probability(features, weights(scorer)), logits.softmax(-1)[:, 1], atol=1e-4, rtol=1e-3)
    standard = (features - features.mean(0)) / features.std(0, unbiased=False)
    torch.testing.assert_close(logits, scorer.linear_2(torch.nn.functional.gelu(scorer.linear_1(standard))))


def test_mask_is_hard_and_its_gradient_soft() -> None:
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 2.5]], requires_grad=True)
    mask = keep_mask(logits)
    assert mask.tolist() == [1.0, 0.0, 0.0]
    (mask * torch.tensor([1.0, 10.0, 100.0])).sum().backward()  # type: ignore[no-untyped-call]
    p = logits.detach().softmax(-1)[:, 1]
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[:, 1], torch.tensor([1.0, 10.0, 100.0]) * p * (1 - p))
