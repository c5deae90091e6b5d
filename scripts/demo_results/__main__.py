"""Measure the demo model and write every table: `python -m scripts.demo_results`, or `./scripts/evaluate_demo`.

What is answered is kept in the work folder: the same command goes on where it was stopped, and repeats nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.demo_results.page import PAGE, page, records_in
from scripts.demo_results.records import RESULTS, write_record
from scripts.demo_results.variants import TABLES, find_table
from sts_export.cli.endings import run_command
from sts_export.cli.parser import Parser
from sts_export.errors import OutputError
from sts_export.files import replace_file
from sts_export.paths import user_path
from sts_export.requests.request import check_count

ROOT = Path(__file__).resolve().parents[2]
_AGAIN = "the answers are kept: run the same command again"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 it failed, 2 the request was wrong, 130 interrupted, 143 and 129 ended by signals."""
    return run_command("evaluate_demo", lambda: run(make_parser().parse_args(argv)), _AGAIN)


def make_parser() -> Parser:
    parser = Parser(prog="evaluate_demo", description="Measure the demo model on its held-out questions, table by table.")
    names = [table.name for table in TABLES]
    parser.add_argument(
        "--tables", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)} (all)"
    )
    parser.add_argument("--questions", type=int, metavar="N", help="the first N (default: each table's own number)")
    parser.add_argument("--model", default="demo", help="alias, hub id or checkpoint folder (default: demo)")
    parser.add_argument("--work", default=str(ROOT / "build" / "demo-results"), metavar="FOLDER", help="bundles and answers")
    parser.add_argument("--output", default=str(ROOT), metavar="FOLDER", help="records and page (default: the repository)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the engine's choice)")
    parser.add_argument("--page-only", action="store_true", help="make the page from the records that are there")
    return parser


def run(args: argparse.Namespace) -> None:
    """Measure the tables, each with its record, and write the page after each.

    Raises:
        StsExportError: the request is wrong, or the work failed.
        OSError: the file system refuses.
    """
    output, work = user_path(args.output), user_path(args.work)
    for name in ("questions", "threads"):
        if getattr(args, name) is not None:
            check_count(f"--{name}", getattr(args, name))
    if args.page_only:
        _check_output(output)
        _write_page(output)
        return

    from scripts.demo_results.measuring import measure
    from scripts.demo_results.planning import read_model
    from sts_export.evaluation.asked import read_task

    model = read_model(args.model)
    _check_output(output)
    _check_folder(work, "--work")
    records_in(output)  # a damaged one is to be known before hours of work
    for name in dict.fromkeys(args.tables):
        table = find_table(name)
        asked = read_task("demo", limit=args.questions or table.questions)
        file = write_record(measure(table, model, asked, work, args.threads), output)
        _write_page(output)
        print(file, flush=True)


def _write_page(output: Path) -> None:
    replace_file(output / PAGE, page(records_in(output)).encode())


def _check_output(output: Path) -> None:
    for folder in (output / PAGE.parent, output / RESULTS):
        _check_folder(folder, "--output")


def _check_folder(folder: Path, option: str) -> None:
    """Raises OutputError for one that cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to {folder} ({error.strerror}); choose another {option}") from None


if __name__ == "__main__":
    sys.exit(main())
