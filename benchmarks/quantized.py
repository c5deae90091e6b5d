"""Quantized bundles against float32, in one run: `python -m benchmarks.quantized`.

The random LLaVA-1.5 shape of 0.36 B parameters of benchmarks.shape, exported as float32, int8 and int4 with
copied weights.  All three answer from the same picture file, each in its own process, taking turns; the ratios are medians
over those of float32.  Random weights cost the same time as trained ones; what quantization does to answers is measured by
scripts/evaluate_demo.
"""

from __future__ import annotations

import platform
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.shape import PROMPT, checkpoint_folder, commit, generation_options
from sts_export.bundle.manifest import Bundle
from sts_export.dtypes import QUANTIZATIONS
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.files import replace_json
from sts_export.json_records import encode
from sts_export.measuring.bench import BenchResult, BenchTask, bench
from sts_export.measuring.turns import Contender
from sts_export.media.synthetic import synthetic_image

BASE = "float32"
SCHEMES: dict[str, str | None] = {BASE: None, **{name: name for name in QUANTIZATIONS}}
METRICS = ("first_token_ms", "decode_ms_per_token")


def weight_bytes(bundle: Bundle) -> int:
    return sum(record.size for record in bundle.manifest.weights.files)


def ratios(result: BenchResult, base: BenchResult) -> dict[str, float]:
    """Of the medians, and of the peak memory."""
    times = {metric: result.median(metric) / base.median(metric) for metric in METRICS}
    return {**times, "peak_rss_mb": result.peak_rss_mb / base.peak_rss_mb}


def figures(bundle: Bundle, result: BenchResult, base: BenchResult) -> dict[str, Any]:
    return {
        **result.to_json(),
        "weight_bytes": weight_bytes(bundle),
        "ratios": ratios(result, base),
        "unquantized_weights": bundle.manifest.unquantized_weights,
    }


def table(contenders: dict[str, dict[str, Any]]) -> str:
    """A row a contender; ratios in brackets."""
    base = contenders[BASE]
    lines = [f"{'':<10}{'weights MB':>18}{'load s':>9}{'first token ms':>20}{'ms per token':>20}{'peak RSS MB':>18}"]
    for name, figure in contenders.items():
        size = figure["weight_bytes"]
        cells = [f"{size / 1e6:.1f} ({size / base['weight_bytes']:.3f})"]
        cells += [f"{figure[metric]:.1f} ({figure['ratios'][metric]:.3f})" for metric in METRICS]
        cells.append(f"{figure['peak_rss_mb']:.0f} ({figure['ratios']['peak_rss_mb']:.3f})")
        lines.append(f"{name:<10}{cells[0]:>18}{figure['load_s']:>9.2f}{cells[1]:>20}{cells[2]:>20}{cells[3]:>18}")
    return "\n".join(lines)


def main() -> None:
    args = generation_options(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = checkpoint_folder(args.checkpoint, Path(scratch))
        image = Path(scratch) / "picture.png"
        synthetic_image(0).save(image)
        bundles = {
            name: export(ExportRequest(str(checkpoint), Path(scratch) / name, args.budget, dtype=BASE, quantize=scheme))
            for name, scheme in SCHEMES.items()
        }
        task = BenchTask(str(image), PROMPT, args.max_new_tokens, args.repeats, args.threads)
        opener = "sts_export.measuring.bench:open_pipeline"
        contenders = [Contender(name, opener, str(made.folder)) for name, made in bundles.items()]
        results = {result.name: result for result in bench(contenders, task)}
    found = {name: figures(bundles[name], result, results[BASE]) for name, result in results.items()}
    print(f"ratios to {BASE} in brackets; medians of {args.repeats}, {args.threads} threads, budget {args.budget}")
    print(table(found))
    if args.json:
        manifest = bundles[BASE].manifest
        record = {
            "commit": commit(),
            "machine": {"processor": platform.machine(), "threads": args.threads},
            "pruning": encode(manifest.pruning),
            "capacities": asdict(manifest.capacities),
            "max_new_tokens": args.max_new_tokens,
            "contenders": found,
        }
        replace_json(args.json, record)


if __name__ == "__main__":
    main()
