"""The bundles whose counts are recorded: random weights and few layers, but heads of 128 and N and K as in use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from scripts.cuda_imitation.counts import COUNTED
from scripts.cuda_imitation.runs import Counted

Row = dict[str, int]
# Copies within the host cost a GPU nothing; how often memory is allocated depends on what was freed before.
KINDS = tuple(kind for kind in COUNTED if kind not in ("copies on the host", "allocations"))
OPERATOR_MARK = ", operator library"
_PARTS = ("llm_lower", "llm_upper")  # of two layers each
_SIZES: dict[str, Any] = {"width": 64, "heads": 2, "kv_heads": 2, "head_dim": 128, "mlp": 96, "max_positions": 8192}


@dataclass(frozen=True)
class Case:
    """A bundle and the picture it is shown.

    Args:
        family: of the model.
        keep: K after stage 1 and after stage 2.
        layers: of the decoder, cut after the second.
        largest: pixels of the largest picture that the bundle takes; 0: this one is.
    """

    family: str
    picture: tuple[int, int]
    keep: tuple[int, int]
    dtype: str = "float16"
    layers: int = 4
    largest: int = 0


LLAVA = Case("llava", (336, 336), (96, 64))
DEEPER = replace(LLAVA, layers=5)
FLOAT32 = replace(LLAVA, dtype="float32")
CROPS = Case("llava_next", (672, 672), (480, 320))
LARGE = Case("qwen2_5_vl", (1680, 1344), (480, 320))
OF_LARGER = replace(LARGE, largest=16384 * 28**2)  # stage 1 by row, but for what is small enough
CASES = (LLAVA, DEEPER, FLOAT32, CROPS, LARGE, OF_LARGER)
OPERATOR_CASES = (LLAVA, CROPS, LARGE)


def export_cases(folder: Path) -> dict[Case, Path]:
    """Write the bundles of CASES, and their checkpoints."""
    return {case: _export(case, folder / f"case-{index}") for index, case in enumerate(CASES)}


def _export(case: Case, folder: Path) -> Path:
    from sts_export.exporting.exporter import ExportRequest, export

    checkpoint = _write(case, folder / "checkpoint")
    request = ExportRequest(
        str(checkpoint),
        output=folder / "bundle",
        keep=case.keep,
        dtype=case.dtype,
        prune_layer=2,
        max_prompt_tokens=64,
        max_new_tokens=16,
    )
    return export(request).folder


def _write(case: Case, folder: Path) -> Path:
    from sts_export.testing import checkpoints as made

    clip: dict[str, Any] = {"image_size": 336, "vision_width": 64, "vision_heads": 1, "vision_layers": 2}
    if case.family == "llava":
        return made.write_random_llava(folder, made.RandomLlava(layers=case.layers, **clip, **_SIZES))
    if case.family == "llava_next":
        return made.write_random_llava_next(folder, made.RandomLlavaNext(layers=case.layers, **clip, **_SIZES))
    pixels = case.picture[0] * case.picture[1]
    sizes = {key: value for key, value in _SIZES.items() if key != "width"}  # Qwen's follows from its heads
    tower: dict[str, Any] = {"vision_width": 64, "vision_heads": 4, "vision_layers": 2, "fullatt_block_indexes": (1,)}
    largest = max(pixels, case.largest)
    bounds: dict[str, Any] = {"min_pixels": pixels, "max_pixels": largest, "mrope_section": (16, 24, 24)}
    write = partial(made.write_random_qwen2_5_vl, folder)
    return write(made.RandomQwen25VL(layers=case.layers, **tower, **bounds, **sizes))


def rows_of(found: Mapping[Case, Counted]) -> dict[str, Row]:
    """Name -> counts, of all CASES."""
    return {
        **_pruning_rows(found),
        "selector, N = 2880, K = 480, for up to N = 16384": _graphs(found[OF_LARGER], "selector"),
        "vision encoder": _graphs(found[LLAVA], "vision_encoder"),
        "prefill, another length": _decoder(replace(found[LLAVA], again=found[LLAVA].other_length), "prefill"),
        "decode step, float32": _decoder(found[FLOAT32], "decode"),
        "prefill, a layer more": _difference(_decoder(found[DEEPER], "prefill"), _decoder(found[LLAVA], "prefill")),
        "decode step, a layer more": _difference(_decoder(found[DEEPER], "decode"), _decoder(found[LLAVA], "decode")),
    }


def operator_rows_of(found: Mapping[Case, Counted]) -> dict[str, Row]:
    """The same of OPERATOR_CASES with the library of custom operators, where it changes something."""
    return {f"{name}{OPERATOR_MARK}": row for name, row in _pruning_rows(found).items()}


def _pruning_rows(found: Mapping[Case, Counted]) -> dict[str, Row]:
    return {
        "selector, N = 576, K = 96": _graphs(found[LLAVA], "selector"),
        "selector, N = 5 x 576, K = 5 x 96": _graphs(found[CROPS], "selector"),
        "selector, N = 2880, K = 480": _graphs(found[LARGE], "selector"),
        "prefill": _decoder(found[LLAVA], "prefill"),
        "decode step": _decoder(found[LLAVA], "decode"),
        "decode step, M-RoPE": _decoder(found[LARGE], "decode"),
    }


def _decoder(counted: Counted, phase: str) -> Row:
    return _graphs(counted, *(f"{phase} {part}" for part in _PARTS))


def _graphs(counted: Counted, *graphs: str) -> Row:
    """Of one run of each of these graphs, after the first request."""
    totals = [counted.again[graph].by_kind() for graph in graphs]
    row = {kind: sum(total[kind] for total in totals) for kind in KINDS}
    nodes = [graph.split()[-1] for graph in graphs]
    row["nodes on the GPU"] = sum(counted.nodes_on(graph, cuda=True) for graph in nodes)
    row["nodes on the CPU"] = sum(counted.nodes_on(graph, cuda=False) for graph in nodes)
    return row


def _difference(more: Row, less: Row) -> Row:
    return {kind: more[kind] - less[kind] for kind in more}
