"""A whole analysis, against loops over what transformers' tower gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sts_export.analysis.tower.analyze import NEIGHBOURS, analyze
from sts_export.analysis.tower.report import AnalysisReport, PictureScores, Score, format_report
from sts_export.bundle.manifest import Bundle
from sts_export.errors import OutputError, RequestError
from sts_export.reference import ReferenceModel
from sts_export.testing.checkpoints import random_image
from tests.analysis.tower.test_score import slow_consistency, slow_nearest

for module, name in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
    pytest.importorskip(module, reason=f"{name} is absent: it comes with the extra analysis")
torch.set_num_threads(1)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    random_image(1, (300, 100)).save(folder / "wide $x_1.png")
    random_image(2, (90, 200)).save(folder / "tall\nä.png")
    (folder / "notes.txt").write_text("x")
    return folder


def expected_scores(checkpoint: Path, picture: Path) -> list[list[float]]:
    """[layer][k] of a LLaVA, by loops."""
    model = ReferenceModel.open(checkpoint, attention="eager")
    pixels = model.processor.image_processor(Image.open(picture).convert("RGB"), return_tensors="pt")["pixel_values"]
    seen: Any = model.model.model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)
    found = []
    for features, attention in zip(seen.hidden_states[1:], seen.attentions, strict=True):
        near = slow_nearest(features[0, 1:].tolist(), NEIGHBOURS[-1])
        scores = attention[0].mean(dim=0)[0, 1:].tolist()
        found.append([slow_consistency(scores, [row[:k] for row in near]) for k in NEIGHBOURS])
    return found


def test_scores_files_and_table(
    bundles: dict[str, Bundle], checkpoints: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    report = analyze(bundles["llava"].folder, pictures, tmp_path / "out", maps=1, progress=lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]
    written = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert written == json.loads(json.dumps(report.to_json()))
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"analysis.json", "consistency.png", "tsne-1.png"}
    for file in (tmp_path / "out").glob("*.png"):
        with Image.open(file) as drawn:
            assert min(drawn.size) > 300
            assert len(drawn.convert("RGB").getcolors(1 << 24) or []) > 50
    assert written["skipped"] == ["notes.txt"]
    assert [item["picture"] for item in written["pictures"]] == ["tall\nä.png", "wide $x_1.png"]
    assert [item["tsne"] for item in written["pictures"]] == ["tsne-1.png", None]
    expected = [expected_scores(checkpoints["llava"], pictures / item["picture"]) for item in written["pictures"]]
    for item, theirs in zip(written["pictures"], expected, strict=True):
        ours = [[row[str(k)]["score"] for k in NEIGHBOURS] for row in item["layers"]]
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    means = [[row["k"][str(k)]["score"] for k in NEIGHBOURS] for row in written["layers"]]
    np.testing.assert_allclose(means, np.mean(expected, axis=0), atol=1e-4)
    assert all(row["k"][str(k)]["pictures"] == 2 for row in written["layers"] for k in NEIGHBOURS)
    table = format_report(report).splitlines()
    assert "mean of 2 picture(s)" in table[0] and "attention of CLS" in table[0]
    assert len(table) == 2 + report.num_layers + 1
    assert [line.endswith("<- stage 1 reads this layer") for line in table[2:-1]] == [False, True, False]
    assert table[-1] == "skipped, no pictures: notes.txt"


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl"])
def test_other_families(bundles: dict[str, Bundle], pictures: Path, tmp_path: Path, family: str) -> None:
    report = analyze(bundles[family].folder, pictures, tmp_path / "out", maps=0)
    assert report.attention == ("received_attention" if family == "qwen2_5_vl" else "cls_attention")
    assert all((len(item.tokens) > 1) == (family == "llava_next") for item in report.pictures)
    assert all(score.score is not None for item in report.pictures for row in item.layers for score in row)
    assert not list((tmp_path / "out").glob("tsne*"))


class Crops:
    """A tower of one layer with given crops."""

    num_layers = feature_layer = 1
    attention = "cls_attention"

    def __init__(self, *attention: list[float]) -> None:
        self.scores = torch.tensor(attention)

    def layers(self, _: Any) -> Any:
        from sts_export.reference.tower_layers import TowerLayer

        features = torch.randn((*self.scores.shape, 4), generator=torch.Generator().manual_seed(0))
        yield TowerLayer(1, features, self.scores)


def with_tower(monkeypatch: pytest.MonkeyPatch, tower: Crops) -> None:
    monkeypatch.setattr(ReferenceModel, "layered_tower", lambda _: tower)
    monkeypatch.setattr("sts_export.reference.clip.ClipReference.layered_tower", lambda _: tower)


def test_crops_are_sets_of_their_own_and_equal_ones_have_no_score(
    bundle: Bundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    varied = [float(number % 5) for number in range(12)]
    with_tower(monkeypatch, Crops(varied))
    alone = analyze(bundle.folder, pictures, tmp_path / "alone", maps=0)
    with_tower(monkeypatch, Crops(varied, [0.5] * 12))
    both = analyze(bundle.folder, pictures, tmp_path / "both", maps=0)
    assert both.pictures[0].tokens == (12, 12)
    assert both.pictures[0].layers == alone.pictures[0].layers
    assert [score.score is None for score in both.pictures[0].layers[0]] == [False, False, True]
    assert "wide $x_1.png: no score for k = 20: it has 12 tokens, and a token is no neighbour of itself" in both.notes
    assert both.notes[1] == "tall\\n\\xe4.png: no score of a crop in layer 1: all its tokens have the same attention"
    assert "none" in format_report(both)
    assert "NaN" not in (tmp_path / "both" / "analysis.json").read_text()


@pytest.mark.parametrize(
    ("tower", "reason"),
    [
        (Crops([0.5] * 30), "all its tokens have the same attention"),
        (Crops([0.1, 0.2, 0.3]), "no score for k = 5, 10, 20: it has 3 tokens"),
        (Crops([0.1]), "no score for k = 5, 10, 20: it has 1 tokens"),
    ],
)
def test_no_score_at_all_is_refused(
    bundle: Bundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tower: Crops, reason: str
) -> None:
    with_tower(monkeypatch, tower)
    with pytest.raises(RequestError, match="no picture has a score: ") as raised:
        analyze(bundle.folder, pictures, tmp_path / "out")
    assert reason in str(raised.value) and "\n" not in str(raised.value)
    assert {file.name for file in tmp_path.iterdir()} == {"pictures"}


def test_a_full_disk_leaves_nothing(bundle: Bundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sts_export.analysis.tower.analyze.draw_curve", full)
    with pytest.raises(OutputError, match="No space left on device; free space or choose another --output"):
        analyze(bundle.folder, pictures, tmp_path / "out", maps=0)
    assert {file.name for file in tmp_path.iterdir()} == {"pictures"}


def test_means_are_over_the_pictures_that_have_a_score() -> None:
    rows = [Score(0.5, 0.1), Score(None, None), Score(0.7, 0.3)]
    pictures = tuple(PictureScores(str(number), (30,), ((row,),)) for number, row in enumerate(rows))
    report = AnalysisReport("b", "c", "cls_attention", 1, (5,), pictures, tuple("abcdefg"), ())
    mean, count = report.mean(1, 0)
    assert [mean.score, mean.shuffled, count] == pytest.approx([0.6, 0.2, 2])
    table = format_report(report)
    assert "0.600 (0.200) of 2" in table
    assert table.endswith("skipped, no pictures: a, b, c, d, e and 2 more")
