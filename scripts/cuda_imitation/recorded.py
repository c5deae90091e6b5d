"""The recorded counts: ``python -m scripts.cuda_imitation.recorded`` renews them and prints them as a table.

What it cannot count, because the library of custom operators is not given, stays as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.cuda_imitation.cases import CASES, OPERATOR_CASES, Case, Row, export_cases, operator_rows_of, rows_of
from scripts.cuda_imitation.failures import ImitationError
from scripts.cuda_imitation.library import DEFAULT_PACKAGES
from scripts.cuda_imitation.runs import Run, count

FILE = Path(__file__).with_name("recorded.json")
RENEW = "python -m scripts.cuda_imitation.recorded"


@dataclass(frozen=True)
class Recorded:
    """Counts by row, and the ONNX Runtime that they are of."""

    version: str
    rows: dict[str, Row]


def read() -> Recorded:
    found = json.loads(FILE.read_text())
    return Recorded(found["onnxruntime-gpu"], found["rows"])


def write(recorded: Recorded) -> None:
    FILE.write_text(json.dumps({"onnxruntime-gpu": recorded.version, "rows": recorded.rows}, indent=2) + "\n")


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


def table(rows: Mapping[str, Row]) -> str:
    """Markdown."""
    kinds = {kind: None for row in rows.values() for kind in row}
    lines = [["", *kinds], ["---", *["--:" for _ in kinds]]]
    lines += [[name, *(str(row.get(kind, "")) for kind in kinds)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    print(table(read().rows))


def _renew(packages: Path, operators: Path | None) -> None:
    rows = read().rows if FILE.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        bundles = export_cases(Path(folder))
        for library in {None, operators}:
            found = count_all(bundles, packages, Path(folder, "imitation"), library)
            rows.update(found.rows)
    write(Recorded(found.version, dict(sorted(rows.items()))))


if __name__ == "__main__":
    main()
