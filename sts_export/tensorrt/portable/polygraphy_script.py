"""Inputs and comparison of a bundle's graphs for Polygraphy: this file is copied into a bundle, and stands alone there.

    polygraphy run llm_lower.onnx --onnxrt --data-loader-script inputs.py:llm_lower_prefill --save-outputs outputs.json
    polygraphy run llm_lower.engine --trt … --load-outputs outputs.json --compare-func-script inputs.py:compare

Beside it lie ``inputs.npz`` (a real picture and a real prompt, as far as they need no model) and ``inputs.json`` (the cases,
and what is drawn at random instead: features, embeddings, hidden states, caches).  A case is a graph, or a part of the decoder
in one of its phases; Polygraphy asks for it by name.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
SETTINGS = Path(__file__).parent / "inputs.json"

# Largest difference over the reference's largest magnitude.
TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}
# Share of stage 2's visual rows that may be others: in 16 bits rounding decides between close scores.
OTHER_ROWS = {"float32": 0.0, "float16": 0.1, "bfloat16": 0.3}
_OF_ROWS = {"hidden_states": 1, "kept_rows": -1, "kept_position_ids": -1}  # outputs with an axis of surviving rows


@dataclass(frozen=True)
class Agreement:
    """One output on two engines.

    kind: ``index`` where numbers must be equal, ``float`` where they must be close.
    max_abs, max_rel: largest difference, and that over the reference's largest magnitude.
    other_rows: share of stage 2's visual rows that the reference did not keep (``kept_rows`` only).
    """

    kind: str
    max_abs: float
    max_rel: float
    passed: bool
    other_rows: float = 0.0

    def __bool__(self) -> bool:
        return self.passed


def agreements(
    actual: Arrays, reference: Arrays, precision: str, *, kept: int | None = None, visual_keep: int = 1
) -> dict[str, Agreement]:
    """Every output of one graph.

    Args:
        actual, reference: outputs by name.
        precision: dtype of the graph; its tolerance.
        kept: tokens that stage 1 keeps; what the selector chose beyond them means nothing.
        visual_keep: visual rows that stage 2 keeps.

    Where the engines kept other rows, their states are compared on the rows that both kept.
    """
    if actual.keys() != reference.keys():
        return dict.fromkeys(sorted(actual.keys() ^ reference.keys()), Agreement("index", np.inf, np.inf, False))
    actual, reference = _meaningful(actual, kept), _meaningful(reference, kept)
    others, result = 0.0, {}
    if "kept_rows" in reference and actual["kept_rows"].shape == reference["kept_rows"].shape:
        others = _other_rows(actual["kept_rows"], reference["kept_rows"], visual_keep)
        if 0 < others <= OTHER_ROWS[precision]:
            actual, reference = _common_rows(actual, reference)
    for name, expected in reference.items():
        agreement = _compare(actual[name], expected, TOLERANCE[precision])
        if name == "kept_rows":
            agreement = Agreement(
                "index", agreement.max_abs, agreement.max_rel, agreement.passed and others <= OTHER_ROWS[precision], others
            )
        result[name] = agreement
    return result


def _meaningful(outputs: Arrays, kept: int | None) -> Arrays:
    """Every output of the selector has a row for each token that it chose; those of the other graphs are whole."""
    return dict(outputs) if kept is None else {name: array[:kept] for name, array in outputs.items()}


def _other_rows(actual: NDArray[np.int64], reference: NDArray[np.int64], visual_keep: int) -> float:
    """[batch, survivors] each; text rows survive on either side."""
    other = [len(np.setdiff1d(mine, theirs)) for mine, theirs in zip(actual, reference, strict=True)]
    return max(other) / visual_keep


def _common_rows(actual: Arrays, reference: Arrays) -> tuple[Arrays, Arrays]:
    """Outputs on the rows that both kept, batch of one."""
    _, mine, theirs = np.intersect1d(actual["kept_rows"][0], reference["kept_rows"][0], return_indices=True)
    return (
        {name: array.take(mine, _OF_ROWS[name]) if name in _OF_ROWS else array for name, array in actual.items()},
        {name: array.take(theirs, _OF_ROWS[name]) if name in _OF_ROWS else array for name, array in reference.items()},
    )


def _compare(actual: NDArray[Any], reference: NDArray[Any], tolerance: float) -> Agreement:
    kind = "float" if np.issubdtype(reference.dtype, np.floating) else "index"
    if actual.shape != reference.shape:
        return Agreement(kind, np.inf, np.inf, False)
    if not reference.size:
        return Agreement(kind, 0.0, 0.0, True)
    if kind == "index":
        difference = float(np.abs(actual.astype(np.int64) - reference.astype(np.int64)).max())
        return Agreement(kind, difference, difference / max(1.0, float(np.abs(reference).max())), difference == 0)
    one, other = actual.astype(np.float32), reference.astype(np.float32)
    difference, largest = float(np.abs(one - other).max()), float(np.abs(other).max())  # NaN on either side stays NaN
    relative = difference / largest if largest else difference
    return Agreement(kind, difference, relative, relative <= tolerance)


# What Polygraphy calls


def __getattr__(name: str) -> Callable[[], Iterator[dict[str, NDArray[Any]]]]:
    """The data loader of a case: which there are is known where the file lies beside its inputs."""
    if not SETTINGS.is_file() or name not in _settings()["cases"]:
        raise AttributeError(f"there are no inputs for {name}")

    def load() -> Iterator[dict[str, NDArray[Any]]]:
        yield _feeds(name)

    return load


def compare(actual: Any, reference: Any) -> OrderedDict[str, bool]:
    """Polygraphy's IterationResults of an engine and of ONNX Runtime."""
    settings = _settings()
    found = agreements(actual, reference, settings["precision"], kept=settings["kept"], visual_keep=settings["visual_keep"])
    for name, item in found.items():
        print(f"{name}: max abs {item.max_abs:.3g}, relative {item.max_rel:.3g}, {'passed' if item else 'FAILED'}")
    return OrderedDict((name, bool(item)) for name, item in found.items())


def _settings() -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(SETTINGS.read_text(encoding="utf-8"))
    return settings


def _feeds(case: str) -> dict[str, NDArray[Any]]:
    """Inputs by name; the same ones in every process."""
    random = np.random.default_rng(0)
    feeds = {}
    with np.load(SETTINGS.with_suffix(".npz")) as stored:
        for name, (dtype, shape) in _settings()["cases"][case].items():
            key = f"{case}/{name}"
            array = stored[key] if key in stored else random.standard_normal(shape, np.float32)
            feeds[name] = array.astype(dtype)
    return feeds
