"""The recorded counts: ``python -m scripts.cuda_imitation.recorded`` renews them, here and on the page.

What it cannot count, because the library of custom operators is not given, stays as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.cuda_imitation.cases import (
    CASES,
    OPERATOR_CASES,
    OPERATOR_MARK,
    Case,
    Row,
    export_cases,
    operator_rows_of,
    rows_of,
)
from scripts.cuda_imitation.failures import ImitationError
from scripts.cuda_imitation.library import DEFAULT_PACKAGES
from scripts.cuda_imitation.runs import REPOSITORY, Run, count

FILE = Path(__file__).with_name("recorded.json")
BEFORE = FILE.with_name("before.json")  # the graphs were rewritten for CUDA; never renewed
PAGE = REPOSITORY / "docs" / "onnxruntime_cuda.md"
RENEW = "python -m scripts.cuda_imitation.recorded"


_TABLE = re.compile(r"^\| counted .*\n(?:\|.*\n)+", re.MULTILINE)
_HEADINGS = {
    "launches": "launches",
    "matrix products": "products",
    "cuDNN operations": "cuDNN",
    "cuDNN plans": "plans",
    "copies to the device": "to GPU",
    "copies to the host": "to host",
    "copies on the device": "on GPU",
    "memsets": "memsets",
    "synchronizations": "waits",
    "nodes on the GPU": "nodes",
    "nodes on the CPU": "on CPU",
}


@dataclass(frozen=True)
class Recorded:
    """Counts by row, and the ONNX Runtime that they are of."""

    version: str
    rows: dict[str, Row]


def read(file: Path = FILE) -> Recorded:
    found = json.loads(file.read_text())
    return Recorded(found["onnxruntime-gpu"], found["rows"])


def write(recorded: Recorded) -> None:
    """Into the file, and as a table into the page."""
    rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(recorded.rows.items()))
    FILE.write_text(f'{{\n  "onnxruntime-gpu": {json.dumps(recorded.version)},\n  "rows": {{\n{rows}\n  }}\n}}\n')
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_TABLE.sub(lambda _: table(read(BEFORE).rows, recorded.rows), page), encoding="utf-8")


def count_all(bundles: Mapping[Case, Path], packages: Path, scratch: Path, operators: Path | None = None) -> Recorded:
    """Count the cases, without a library of custom operators or with one.

    Args:
        bundles: what ``export_cases`` returns.
        packages: folder of onnxruntime-gpu.
        scratch: folder for the imitation.
        operators: library of custom operators, linked with the CUDA runtime as a shared library.

    Raises:
        ImitationError: it cannot be counted.
    """
    cases = CASES if operators is None else OPERATOR_CASES
    counted = count([Run(bundles[case], case.picture, operators) for case in cases], packages, scratch)
    found = dict(zip(cases, counted, strict=True))
    return Recorded(counted[0].version, rows_of(found) if operators is None else operator_rows_of(found))


def grown(rows: Mapping[str, Row], recorded: Mapping[str, Row]) -> list[str]:
    """One line for each count above the recorded one, and for each row that is not recorded."""
    lines = [f"{name}: not recorded" for name in rows if name not in recorded]
    for name in rows.keys() & recorded.keys():
        for kind, number in rows[name].items():
            if number > (before := recorded[name].get(kind, 0)):
                lines.append(f"{name}: {number} {kind}, {before} are recorded")
    return sorted(lines)


def table(before: Mapping[str, Row], rows: Mapping[str, Row]) -> str:
    """Markdown, each cell as "before → now" where that differs; a row with the library is compared with the one without."""
    lines = [["counted", *_HEADINGS.values()], ["---", *["--:" for _ in _HEADINGS]]]
    for name, row in sorted(rows.items()):
        old = before.get(name.removesuffix(OPERATOR_MARK), row)
        lines.append([name, *(_cell(old[kind], row[kind]) for kind in _HEADINGS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(before: int, now: int) -> str:
    return str(now) if before == now else f"{before} → {now}"


def main() -> None:
    parser = argparse.ArgumentParser(prog=RENEW, description=__doc__)
    option = parser.add_argument
    option("--operators", type=Path, help="library of custom operators, linked with the shared CUDA runtime")
    option("--onnxruntime-gpu", type=Path, default=DEFAULT_PACKAGES, help="its folder (default: %(default)s)")
    option("--print", action="store_true", help="print what is recorded and count nothing")
    arguments = parser.parse_args()
    if not arguments.print:
        try:
            _renew(arguments.onnxruntime_gpu.resolve(), arguments.operators and arguments.operators.resolve())
        except ImitationError as error:
            sys.exit(f"cuda_imitation: {error}")
    print(table(read(BEFORE).rows, read().rows), end="")


def _renew(packages: Path, operators: Path | None) -> None:
    rows = read().rows if FILE.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        bundles = export_cases(Path(folder))
        for library in {None, operators}:
            found = count_all(bundles, packages, Path(folder, "imitation"), library)
            rows.update(found.rows)
    write(Recorded(found.version, rows))


if __name__ == "__main__":
    main()
