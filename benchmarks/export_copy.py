"""`--weights copy` against `cp`, in one run: `python -m benchmarks.export_copy`.

A random float32 LLaVA-1.5 shape of 0.36 B parameters, 1.4 GB in four shards, really on the disk.  Each export runs in its
own process, which reports its largest resident set; `cp` of the same shards and the exports take turns.  Files are read
once before, so that both find them in the page cache; nothing is synced.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.shape import checkpoint_folder, commit, common_options
from sts_export.files import replace_json
from sts_export.measuring.turns import alternate, medians

_EXPORT = """
import json, sys, time
from sts_export.measuring.memory import peak_rss_mb
from sts_export.exporting.exporter import ExportRequest, export
before = peak_rss_mb()
started = time.perf_counter()
bundle = export(ExportRequest(sys.argv[1], output=sys.argv[2], budget="64", dtype=sys.argv[3]))
print(json.dumps({"seconds": time.perf_counter() - started, "rss_mb": peak_rss_mb(), "imports_mb": before}))
"""


def run_export(checkpoint: Path, output: Path, dtype: str) -> dict[str, float]:
    command = [sys.executable, "-c", _EXPORT, str(checkpoint), str(output), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(output)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run_cp(checkpoint: Path, output: Path) -> dict[str, float]:
    output.mkdir()
    started = time.perf_counter()
    subprocess.run(["cp", *map(str, checkpoint.glob("*.safetensors")), str(output)], check=True)
    seconds = time.perf_counter() - started
    shutil.rmtree(output)
    return {"seconds": seconds}


def main() -> None:
    args = common_options(__doc__, repeats=3).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = checkpoint_folder(args.checkpoint, Path(scratch))
        size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
        run_cp(checkpoint, Path(scratch) / "warm")
        runs: dict[str, Callable[[], dict[str, float]]] = {"cp": partial(run_cp, checkpoint, Path(scratch) / "copy")}
        for dtype in ("float32", "float16"):
            runs[dtype] = partial(run_export, checkpoint, Path(scratch) / "bundle", dtype)
        found = alternate(runs, args.repeats)
    values = {name: figures["seconds"] for name, figures in found.items()}
    rss = {name: max(figures["rss_mb"]) for name, figures in found.items() if "rss_mb" in figures}
    median = medians(values)
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
