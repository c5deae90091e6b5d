"""What a method adds to a request, in milliseconds, and the request's first token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.selection.graphs import Feeds, Graph, encoder_graph, first_rows, selector_graph, stage2_graph
from benchmarks.selection.shapes import Shape
from benchmarks.shape import PROMPT
from sts_export.families.spec import ModelSpec
from sts_export.graphs.needs import PROJECTED
from sts_export.measuring.turns import alternate
from sts_export.pruning.config import PruningConfig
from sts_export.pruning.stage1.keep_all import KeepAll

# Text rows of the prompt: before the picture, and behind it.
TEXT_BEFORE, TEXT_BEHIND = 8, 32
WARM_UPS = 2
# A run below this many milliseconds is repeated within a turn, and counts with its mean.
_LEAST_MS, _MOST_RUNS = 20.0, 20


@dataclass(frozen=True)
class Added:
    """What a method adds, each a list with one difference (milliseconds) for every turn; empty where nothing is added.

    Args:
        tower: the encoder with what the stage needs of it, less the encoder without.
        selection: stage 1: its selector, less one that takes the first K rows.
        projecting: that selector where all rows are projected first, less the one where K are; of methods that need them.
        inside: stage 2, in a graph of its own, with what is computed for its sake alone.
    """

    tower: list[float] = field(default_factory=list)
    selection: list[float] = field(default_factory=list)
    projecting: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        """Of what is added; never below 0, which only noise is."""
        return {name: max(0.0, statistics.median(values)) for name, values in vars(self).items() if values}


def added(
    spec: ModelSpec, shape: Shape, pruning: Mapping[str, PruningConfig], *, repeats: int, threads: int
) -> dict[str, Added]:
    """What each method adds; ``pruning`` by its name."""
    towers = _towers(spec, shape, pruning, repeats, threads)
    found = {}
    for name, config in pruning.items():
        tower = towers[config.tower_needs] if config.tower_needs else []
        selection, projecting = _stage1(spec, shape, config, repeats, threads)
        found[name] = Added(tower, selection, projecting, _stage2(spec, shape, config, repeats, threads))
    return found


def first_token(bundle: Any, shape: Shape, *, repeats: int, threads: int) -> list[float]:
    """Milliseconds from the picture to the first token, for every run."""
    from sts_export.generation.pipeline import Pipeline

    pipeline, picture = Pipeline(bundle, threads=threads, backend="onnxruntime"), shape.picture()
    times = []
    for run in range(1 + repeats):
        result = pipeline.generate(PROMPT, picture, max_new_tokens=1, ignore_eos=True)
        times += [result.timings_ms.first_token] if run else []
    pipeline.close()
    return times


def differences(
    runs: Mapping[str, Callable[[], Any]], pairs: Mapping[str, tuple[str, str]], repeats: int
) -> dict[str, list[float]]:
    """Run all in turn; for every name of ``pairs`` the differences of the two runs that it names, turn by turn."""
    for run in runs.values():
        for _ in range(WARM_UPS):
            run()
    values = alternate({name: _timed(run) for name, run in runs.items()}, repeats)
    times = {name: found["ms"] for name, found in values.items()}
    return {
        name: [one - other for one, other in zip(times[more], times[less], strict=True)] for name, (more, less) in pairs.items()
    }


def _timed(run: Callable[[], Any]) -> Callable[[], dict[str, float]]:
    def timed() -> dict[str, float]:
        times: list[float] = []
        while not times or (sum(times) < _LEAST_MS and len(times) < _MOST_RUNS):
            started = time.perf_counter()
            run()
            times.append((time.perf_counter() - started) * 1e3)
        return {"ms": statistics.median(times)}

    return timed


def _towers(
    spec: ModelSpec, shape: Shape, pruning: Mapping[str, PruningConfig], repeats: int, threads: int
) -> dict[frozenset[str], list[float]]:
    """What each set of needs adds to the encoder."""
    nothing: frozenset[str] = frozenset()
    needs = {config.tower_needs for config in pruning.values()} | {nothing}
    runs, labels = {}, {}
    for index, wanted in enumerate(sorted(needs, key=sorted)):
        graph = encoder_graph(spec, wanted, threads)
        runs[str(index)] = graph.runner(graph.random_feeds({"crops": shape.crops}, {}))
        labels[wanted] = str(index)
    pairs = {label: (label, labels[nothing]) for label in labels.values()}
    found = differences(runs, pairs, repeats)
    return {wanted: found[label] for wanted, label in labels.items()}


def _stage1(
    spec: ModelSpec, shape: Shape, config: PruningConfig, repeats: int, threads: int
) -> tuple[list[float], list[float]]:
    """What choosing adds to the selector, and what projecting all rows does."""
    stage = config.stage1
    if not config.drops_before:
        return [], []
    sizes, given = _selector_feeds(shape, config.keep_stage1)
    plain = selector_graph(spec, KeepAll(), threads, build=first_rows)
    graphs = {"stage": selector_graph(spec, stage, threads), "plain": plain}
    if PROJECTED in stage.needs:
        graphs["projecting"] = selector_graph(spec, stage, threads, build=first_rows)
    runs = {name: graph.runner(graph.random_feeds(sizes, given)) for name, graph in graphs.items()}
    if PROJECTED not in stage.needs:
        return differences(runs, {"selection": ("stage", "plain")}, repeats)["selection"], []
    found = differences(runs, {"selection": ("stage", "projecting"), "projecting": ("projecting", "plain")}, repeats)
    return found["selection"], found["projecting"]


def _selector_feeds(shape: Shape, keep: int) -> tuple[dict[str, int], Feeds]:
    steps = keep // shape.crops
    given: dict[str, NDArray[Any]] = {
        "token_order": np.arange(shape.tokens),
        "quota": np.ones((shape.crops, steps), np.bool_),
        "text_ids": np.arange(TEXT_BEFORE + TEXT_BEHIND),
        "seed": np.array([7]),
        "grid_columns": np.array([int(shape.crop_tokens**0.5)]),
    }
    return {"crops": shape.crops, "tokens": shape.tokens, "steps": steps}, given


def _stage2(spec: ModelSpec, shape: Shape, config: PruningConfig, repeats: int, threads: int) -> list[float]:
    if config.stage2.keeps_all:
        return []
    visual, rows = config.keep_stage1, TEXT_BEFORE + config.keep_stage1 + TEXT_BEHIND
    row = np.arange(rows)[None]
    is_visual = (row >= TEXT_BEFORE) & (row < TEXT_BEFORE + visual)
    graph: Graph = stage2_graph(spec, config.stage2, rows, threads)
    sizes = {"batch": 1, "rows": rows, "visual": visual, "visual_keep": config.keep_stage2}
    given: dict[str, NDArray[Any]] = {
        "attention_mask": np.ones((1, rows), np.int64),
        "visual_mask": is_visual,
        "text_rows": ~is_visual,
        "stage2_slots": np.zeros(config.keep_stage2, np.int64),
        "seed": np.array([7]),
        "position_ids": row,
        "write_index": np.zeros(1, np.int64),
    }
    run = graph.runner(graph.random_feeds(sizes, given))
    return differences({"stage": run, "nothing": lambda: None}, {"inside": ("stage", "nothing")}, repeats)["inside"]


def shares(parts: Mapping[str, float], first: Sequence[float]) -> dict[str, float]:
    """Of the first token's median; ``choosing`` is all but the projection of all rows, which some methods cannot do without."""
    whole = statistics.median(first)
    found = {name: value / whole for name, value in parts.items()}
    return {**found, "choosing": sum(value for name, value in found.items() if name != "projecting")}
