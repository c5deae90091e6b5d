"""`--weights copy` against `cp`, in one run: `python -m benchmarks.export_copy`.

A random float32 LLaVA-1.5 shape of 0.36 B parameters, 1.4 GB in four shards, really on the disk.  Each export runs in its
own process, which reports its largest resident set; `cp` of the same shards and the exports take turns.  Files are read
once before, so that both find them in the page cache; nothing is synced.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.shape import checkpoint_folder, commit, common_options
from sts_export.files import replace_json

_EXPORT = """
import json, sys, time
from sts_export.measuring.bench import peak_rss_mb
from sts_export.exporting.exporter import ExportRequest, export
before = peak_rss_mb()
started = time.perf_counter()
bundle = export(ExportRequest(sys.argv[1], output=sys.argv[2], budget="64", dtype=sys.argv[3]))
print(json.dumps({"seconds": time.perf_counter() - started, "rss_mb": peak_rss_mb(), "imports_mb": before}))
"""


def run_export(checkpoint: Path, output: Path, dtype: str) -> dict[str, Any]:
    command = [sys.executable, "-c", _EXPORT, str(checkpoint), str(output), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(output)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run_cp(checkpoint: Path, output: Path) -> float:
    output.mkdir()
    started = time.perf_counter()
    subprocess.run(["cp", *map(str, checkpoint.glob("*.safetensors")), str(output)], check=True)
    seconds = time.perf_counter() - started
    shutil.rmtree(output)
    return seconds


def main() -> None:
    args = common_options(__doc__, repeats=3).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = checkpoint_folder(args.checkpoint, Path(scratch))
        size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
        run_cp(checkpoint, Path(scratch) / "warm")
        values: dict[str, list[float]] = {"cp": [], "float32": [], "float16": []}
        rss: dict[str, float] = {}
        for _ in range(args.repeats):
            values["cp"].append(run_cp(checkpoint, Path(scratch) / "copy"))
            for dtype in ("float32", "float16"):
                figures = run_export(checkpoint, Path(scratch) / "bundle", dtype)
                values[dtype].append(figures["seconds"])
                rss[dtype] = max(rss.get(dtype, 0.0), figures["rss_mb"])
    median = {name: statistics.median(times) for name, times in values.items()}
    print(f"{size / 1e6:.0f} MB; medians of {args.repeats}")
    print(f"{'':<28}{'seconds':>9}{'MB/s':>8}{'against cp':>12}{'peak RSS MB':>13}")
    for name, label in (("cp", "cp"), ("float32", "export, copied"), ("float16", "export, to float16")):
        speed, peak = size / 1e6 / median[name], f"{rss[name]:.0f}" if name in rss else ""
        print(f"{label:<28}{median[name]:>9.2f}{speed:>8.0f}{median[name] / median['cp']:>12.2f}{peak:>13}")
    if args.json:
        record = {"commit": commit(), "bytes": size, "seconds": values, "peak_rss_mb": rss}
        replace_json(args.json, record)


if __name__ == "__main__":
    main()
