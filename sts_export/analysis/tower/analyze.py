"""Score a bundle's vision tower on the pictures of a folder, and draw what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sts_export.analysis.tower.drawing import LayerMap, draw_curve, draw_maps
from sts_export.analysis.tower.folder import pictures_of
from sts_export.analysis.tower.report import AnalysisReport, PictureScores, Score, mean_score
from sts_export.analysis.tower.score import consistency, nearest, ranks, shuffled_consistency
from sts_export.analysis.tower.tsne import FEWEST, on_a_plane
from sts_export.bundle.manifest import open_bundle
from sts_export.errors import OutputError, RequestError
from sts_export.exporting.staging import remove_abandoned, staging
from sts_export.files import replace_json
from sts_export.media.images import load_image
from sts_export.paths import user_path
from sts_export.source_reference import open_reference

if TYPE_CHECKING:
    from sts_export.reference.prompt import ImageInput
    from sts_export.reference.tower_layers import LayeredTower

NEIGHBOURS = (5, 10, 20)
JSON_FILE, CURVE_FILE = "analysis.json", "consistency.png"
_MODULES = {"torch": "PyTorch", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}


@dataclass
class _Seen:
    """What is kept of a picture while its layers go by."""

    layers: list[tuple[Score, ...]] = field(default_factory=list)
    maps: list[LayerMap] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tokens: tuple[int, ...] = ()


def analyze(
    bundle: str | Path,
    images: str | Path,
    output: str | Path,
    checkpoint: str | None = None,
    *,
    maps: int = 3,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AnalysisReport:
    """Scores of every layer of the source checkpoint's tower, in float32 on the CPU.

    Args:
        images: folder of pictures.
        output: new folder for ``analysis.json``, ``consistency.png`` and ``tsne-1.png``, ``tsne-2.png``, ...; appears whole or
            not at all.
        checkpoint: as for :func:`sts_export.verification.answers.verify`.
        maps: how many pictures get a t-SNE, the first by name.
        progress: called with the pictures done and their number.

    Raises:
        RequestError: a module is absent, or no picture has tokens enough for a score.
        CheckpointError: the source checkpoint is gone (give it with --checkpoint) or another one.
        ImageError: a picture, or none.
        OutputError: ``output`` exists or cannot be written.
    """
    if maps < 0:
        raise RequestError(f"--tsne must be at least 0, not {maps}")
    _check_modules()
    target = user_path(output)
    if target.exists():
        raise OutputError(f"{output} exists; choose another --output or remove it")
    opened = open_bundle(bundle)
    files, skipped = pictures_of(images)
    model = open_reference(opened, checkpoint)
    tower = model.layered_tower()
    found, notes = [], []
    remove_abandoned(target)
    with staging(target) as folder:
        for number, file in enumerate(files, 1):
            picture = load_image(file)
            seen = _look(tower, model.process(picture), _mapped_layers(tower) if number <= maps else ())
            drawn = f"tsne-{number}.png" if seen.maps else None
            if drawn:
                draw_maps(picture, file.name, tower.attention, seen.maps, folder / drawn)
            found.append(PictureScores(file.name, seen.tokens, tuple(seen.layers), drawn))
            notes += [f"{ascii(file.name)[1:-1]}: {note}" for note in seen.notes]
            progress(number, len(files))
        source = str(checkpoint or opened.manifest.source.folder)
        report = AnalysisReport(
            str(bundle), source, tower.attention, tower.feature_layer, NEIGHBOURS, tuple(found), tuple(skipped), tuple(notes)
        )
        _check_scores(report)
        draw_curve(report, folder / CURVE_FILE)
        replace_json(folder / JSON_FILE, report.to_json())
    return report


def _check_modules() -> None:
    for module, name in _MODULES.items():
        if find_spec(module) is None:
            raise RequestError(f"analyze needs {name}: pip install 'sts-export[analysis]'")


def _check_scores(report: AnalysisReport) -> None:
    if all(score.score is None for picture in report.pictures for row in picture.layers for score in row):
        raise RequestError(f"no picture has a score: {report.notes[0]}; give other pictures")


def _mapped_layers(tower: LayeredTower) -> Sequence[int]:
    """A shallow, a middle and a deep layer: the first, the one that stage 1 reads, and the one half-way between."""
    deep = tower.feature_layer or tower.num_layers
    return sorted({1, (1 + deep) // 2, deep})


def _look(tower: LayeredTower, prepared: ImageInput, mapped: Sequence[int]) -> _Seen:
    """Every layer of one picture; each crop is a set of tokens of its own, and the first one is mapped."""
    seen, same, unmapped = _Seen(), [], []
    for layer in tower.layers(prepared):
        features, attention = layer.features.float().numpy(), layer.attention.numpy()
        seen.tokens = tuple(len(crop) for crop in features)
        crops = [_scores(*crop) for crop in zip(features, attention, strict=True)]
        seen.layers.append(tuple(mean_score(scores) for scores in zip(*crops, strict=True)))
        if any(scores[0].score is None for scores in crops) and len(attention[0]) > NEIGHBOURS[0]:
            same.append(layer.number)
        if layer.number in mapped:
            places = on_a_plane(features[0])
            if places is None:
                unmapped.append(layer.number)
            else:
                seen.maps.append(LayerMap(layer.number, places, ranks(attention[0])))
    fewest = min(seen.tokens)
    if far := [k for k in NEIGHBOURS if k >= fewest]:
        seen.notes.append(f"no score for k = {_listed(far)}: it has {fewest} tokens, and a token is no neighbour of itself")
    if same:
        seen.notes.append(f"no score of a crop in layer {_listed(same)}: all its tokens have the same attention")
    if unmapped:
        seen.notes.append(f"no t-SNE of layer {_listed(unmapped)}: under {FEWEST} tokens, or the same features in all of them")
    return seen


def _scores(features: NDArray[np.float32], attention: NDArray[np.float32]) -> list[Score]:
    """Of one crop, one per k."""
    near = nearest(features, min(NEIGHBOURS[-1], len(features) - 1)) if len(features) > 1 else None
    return [
        Score(None, None)
        if near is None or k >= len(features)
        else Score(consistency(attention, near[:, :k]), shuffled_consistency(attention, near[:, :k]))
        for k in NEIGHBOURS
    ]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
