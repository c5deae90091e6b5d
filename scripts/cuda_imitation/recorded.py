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

from scripts.cuda_imitation.cases import CASES, Row, export_case, rows_of, runs_of
from scripts.cuda_imitation.failures import ImitationError
from scripts.cuda_imitation.library import DEFAULT_PACKAGES
from scripts.cuda_imitation.runs import count

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


def count_all(folder: Path, packages: Path, operators: Path | None = None) -> Recorded:
    """Export every case and count it.

    Args:
        folder: for checkpoints, bundles and the imitation.
        packages: folder of onnxruntime-gpu.
        operators: library of custom operators, linked with the CUDA runtime as a shared library.

    Raises:
        ImitationError: it cannot be counted.
    """
    bundles = {case: export_case(case, folder / str(index)) for index, case in enumerate(CASES)}
    counted = count(runs_of(bundles, operators), packages, folder / "imitation")
    return Recorded(counted[0].version, rows_of(counted))


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
        operators = arguments.operators and arguments.operators.resolve()
        try:
            with tempfile.TemporaryDirectory() as folder:
                found = count_all(Path(folder), arguments.onnxruntime_gpu.resolve(), operators)
        except ImitationError as error:
            sys.exit(f"cuda_imitation: {error}")
        kept = read().rows if FILE.is_file() else {}
        write(Recorded(found.version, {**kept, **found.rows}))
    print(table(read().rows))


if __name__ == "__main__":
    main()
