"""What choosing costs, by method, in one run on the CPU: `python -m benchmarks.selection`.

The random float32 shape of 0.36 B parameters (benchmarks.shape) with a picture of 576 tokens at budget 64, and one of five
crops, 2880 tokens, at budget 320.  A method adds up to four things to a request, each timed against the same graph without it,
in turn, with random weights: outputs of the vision tower; the choice of stage 1, against a selector that takes the first K
rows; the projection of all rows instead of K, where a method compares projected rows; and stage 2, in a graph of its own, with
the norm and projections that it alone needs.  The share is of the method's own first token, from the picture on, measured
in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.selection.measure import added, first_token, shares
from benchmarks.selection.shapes import SHAPES, Shape
from benchmarks.selection.table import put, rows
from benchmarks.shape import VISION_WIDTH, commit
from sts_export.bundle.manifest import Manifest
from sts_export.errors import StsExportError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.files import replace_json
from sts_export.pruning.choosing import StageChoice, choose_stages
from sts_export.pruning.methods import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=[method.name for method in METHODS], help="default: all")
    parser.add_argument("--tokens", nargs="+", type=int, default=[shape.tokens for shape in SHAPES], help="default: all shapes")
    parser.add_argument("--repeats", type=int, default=15, help="turns of the graphs")
    parser.add_argument("--first-tokens", type=int, default=3, help="runs of a whole request")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write figures here")
    parser.add_argument("--table", type=Path, help="measure nothing: put the table of this record into the page")
    return parser


def measured(shape: Shape, methods: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """The figures of all methods for one shape."""
    firsts: dict[str, list[float]] = {}
    manifests: dict[str, Manifest] = {}
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "checkpoint"
        shape.write(checkpoint)
        for method in methods:
            with exported(method, shape, checkpoint, Path(scratch)) as (folder, manifest):
                manifests[method] = manifest
                firsts[method] = first_token(folder, shape, repeats=args.first_tokens, threads=args.threads)
                print(f"N = {shape.tokens}, {method}: first token {statistics.median(firsts[method]):.0f} ms", file=sys.stderr)
    spec = manifests[methods[0]].model
    pruning = {name: manifest.pruning for name, manifest in manifests.items()}
    found = added(spec, shape, pruning, repeats=args.repeats, threads=args.threads)
    figures = {}
    for name in methods:
        parts, config = found[name].medians(), pruning[name]
        figures[name] = {
            "keep": [config.keep_stage1, config.keep_stage2],
            "prune_layer": config.prune_layer,
            "first_token_ms": statistics.median(firsts[name]),
            "ms": parts,
            "shares": shares(parts, firsts[name]),
            "values": {"first_token_ms": firsts[name], **vars(found[name])},
        }
    return {"tokens": shape.tokens, "crops": shape.crops, "budget": shape.budget, "methods": figures}


@contextmanager
def exported(method: str, shape: Shape, checkpoint: Path, scratch: Path) -> Iterator[tuple[Path, Manifest]]:
    """The bundle of a method, while it is needed."""
    pair = choose_stages(StageChoice(method))
    request: dict[str, Any] = {"method": method, "weights": "link"}
    if pair.stage1.keeps_all and not pair.keeps_all:
        # As such methods count; the lower layers alone can be more than the budget on average.
        request["keep"] = (shape.tokens, shape.budget)
    elif not pair.keeps_all:
        request["budget"] = str(shape.budget)
    if shapes := pair.stage1.own_weights(VISION_WIDTH):
        request["selector_weights"] = random_weights(shapes, scratch / "selector.safetensors")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        bundle = export(ExportRequest(str(checkpoint), Path(folder) / "bundle", **request))
        yield bundle.folder, bundle.manifest


def random_weights(shapes: Any, file: Path) -> Path:
    """Weights of a selector that was not trained."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(2)
    save_file({name: 0.05 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}, file)
    return file


def main() -> None:
    args = options().parse_args()
    if args.table:
        lines = rows(json.loads(args.table.read_text(encoding="utf-8")))
        PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), lines), encoding="utf-8")
        return
    found = []
    for shape in (shape for shape in SHAPES if shape.tokens in args.tokens):
        try:
            found.append(measured(shape, args.methods, args))
        except StsExportError as error:
            raise SystemExit(f"{error}") from None
    record = {
        "commit": commit(),
        "machine": {"processor": platform.machine(), "threads": args.threads},
        "shapes": found,
    }
    print("\n".join(rows(record)))
    if args.json:
        replace_json(args.json, record)


if __name__ == "__main__":
    main()
