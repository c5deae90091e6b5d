"""On the machine: keep what was carried, unpack what is whole, run a part of scripts/gpu, and put all results so far into $OUT.

It needs nothing but Python.  What was carried and what was measured lies in the store, which outlives the tree; nothing else
that an earlier call left is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
CONTENTS = "contents.json"  # of a carried folder: its files, and the archives that they are parts of
_IN_MEMORY, _ROOM = Path("/dev/shm"), 40 << 30
_IMPORTS = "import torch, transformers, onnx, onnxscript, onnxruntime"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: that of the run; 3 where what was carried is damaged, 124 where its time was up."""
    reader = argparse.ArgumentParser(prog="there", allow_abbrev=False)
    reader.add_argument("name", help="of the step")
    reader.add_argument("--carried", type=Path, required=True, help="folder that came with the tree")
    reader.add_argument("--store", type=Path, required=True, help="folder that outlives this call")
    reader.add_argument("--out", type=Path, required=True, help="folder whose content comes back")
    reader.add_argument("--commit", required=True, help="of the tree")
    reader.add_argument("--limit", type=float, default=300, help="seconds that the run may take")
    reader.add_argument("--imports", action="store_true", help="read large packages from the disk beside the run")
    reader.epilog = "After -- come arguments of scripts/gpu/run; without any nothing is run."
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)  # argparse itself differs between releases of Python here
    args = reader.parse_args(words[:end])
    args.run = words[end + 1 :]
    started = time.monotonic()
    results = args.store / "results"
    results.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"step": args.name, "arguments": args.run, "brought_bytes": 0, "unpacked": [], "exit_code": 3}
    try:
        report["brought_bytes"] = keep(args.carried, args.store / "brought")
        report["unpacked"] = unpack(args.store)
        if args.run:
            with tempfile.TemporaryDirectory(dir=_roomy(args.store)) as scratch:  # a run that is stopped leaves its files
                report["exit_code"] = _run(args, results, scratch)
        else:
            report["exit_code"] = 0
    except (OSError, ValueError, tarfile.TarError) as error:
        print(f"there: {error}", file=sys.stderr)
    finally:
        report["seconds"] = round(time.monotonic() - started, 1)
        with (results / "steps.jsonl").open("a") as stream:
            stream.write(json.dumps(report) + "\n")
        give_back(results, args.out, args.name)
    return int(report["exit_code"])


def keep(carried: Path, brought: Path) -> int:
    """Copy the files that ``contents.json`` names; returns their bytes.

    Raises:
        ValueError: one is missing or damaged.
    """
    contents = json.loads((carried / CONTENTS).read_text())
    brought.mkdir(parents=True, exist_ok=True)
    total = 0
    for name, digest in contents["files"].items():
        data = (carried / name).read_bytes() if (carried / name).is_file() else b""
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{name} is missing or damaged; fill {carried} again")
        total += len(data)
        (brought / name).write_bytes(data)
    (brought / CONTENTS).write_text(json.dumps(contents))
    return total


def unpack(store: Path) -> list[str]:
    """Unpack every archive whose parts are all there into a folder of the store; returns the names of those unpacked now."""
    brought = store / "brought"
    done = []
    for name, archive in json.loads((brought / CONTENTS).read_text())["archives"].items():
        parts, marker = [brought / part for part in archive["parts"]], brought / f"{name}.{archive['sha256'][:16]}.unpacked"
        if marker.exists() or not all(part.is_file() for part in parts):
            continue
        whole = brought / f"{name}.whole"  # an archive in one part has its name
        with whole.open("wb") as stream:
            for part in parts:
                stream.write(part.read_bytes())
        if hashlib.sha256(whole.read_bytes()).hexdigest() != archive["sha256"]:
            raise ValueError(f"the parts of {name} do not belong together; bring all of them again")
        with tarfile.open(whole) as tar:
            if hasattr(tarfile, "data_filter"):  # Python 3.11.4 and newer
                tar.extraction_filter = tarfile.data_filter
            tar.extractall(store / archive["into"])
        whole.unlink()
        marker.touch()
        done.append(name)
    return done


def environment(store: Path) -> dict[str, str]:
    """What was brought comes first, and CUDA's libraries are found beside it: they came with another package."""
    site = store / "site"
    nvidia = importlib.util.find_spec("nvidia")
    folders = nvidia.submodule_search_locations if nvidia is not None else None
    libraries = sorted({str(file.parent) for folder in folders or () for file in Path(folder).glob("*/lib/*.so*")})
    values = dict(os.environ)
    for variable, paths in (("PYTHONPATH", [str(site)]), ("LD_LIBRARY_PATH", libraries)):
        values[variable] = ":".join([*paths, *([values[variable]] if values.get(variable) else [])])
    return {**values, "PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"}


def give_back(results: Path, out: Path, name: str) -> None:
    """All results in one archive, and the log of this step as it is; few files, since few come back."""
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out / "results.tar.gz", "w:gz") as tar:
        tar.add(results, "results")
    log = results / f"{name}.log"
    if log.is_file():
        shutil.copy(log, out / log.name)


def _run(args: argparse.Namespace, results: Path, scratch: str) -> int:
    """scripts/gpu/run, its output into a log and on; stopped with all its processes when its time is up."""
    values = environment(args.store)
    beside = None
    if args.imports:
        quiet = subprocess.DEVNULL
        beside = subprocess.Popen([sys.executable, "-c", _IMPORTS], env=values, stdout=quiet, stderr=quiet)
    command = [str(ROOT / "scripts" / "gpu" / "run"), "--output", str(results), "--commit", args.commit]
    command += ["--scratch", scratch]
    if (args.store / "binaries").is_dir():
        command += ["--binaries", str(args.store / "binaries")]
    with (results / f"{args.name}.log").open("w") as log:
        said: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen([*command, *args.run], env=values, start_new_session=True, **said)
        signal.signal(signal.SIGALRM, lambda *_: _stop(process))
        signal.setitimer(signal.ITIMER_REAL, args.limit)
        late = time.monotonic() + args.limit
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            log.write(line)
        code = process.wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
    if beside is not None:
        beside.kill()
        beside.wait()
    return 124 if time.monotonic() >= late else code


def _stop(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def _roomy(store: Path) -> Path:
    """In memory, where there is room for a model's weights."""
    if _IN_MEMORY.is_dir() and shutil.disk_usage(_IN_MEMORY).free >= _ROOM:
        return _IN_MEMORY
    return store


if __name__ == "__main__":
    sys.exit(main())
