"""`sts-export evaluate`."""

from __future__ import annotations

import argparse
import json

from sts_export.cli.budgets import asked_keep
from sts_export.cli.parser import Parser, add_backend, command_parser

SUMMARY = "score bundles on a benchmark, budgets side by side"
PLACE = 55


def make_parser() -> Parser:
    text = "Score bundles on a benchmark: a row for every bundle and budget.  What is answered is kept, and never asked again."
    parser = command_parser("evaluate", text, bundle=False)
    parser.add_argument(
        "bundles",
        metavar="BUNDLE",
        nargs="+",
        help="folder written by sts-export (may be several; another method is another export, see --method there)",
    )
    tasks = "demo (built in), gqa, mmbench, mme, pope, scienceqa, textvqa, vizwiz or vqav2"
    parser.add_argument("--task", required=True, help=tasks)
    parser.add_argument("--data", metavar="FOLDER", help="the benchmark's files, as they are published (docs/evaluation.md)")
    parser.add_argument("--limit", metavar="N", type=int, help="the first N questions (default: all; 2000 of demo)")
    amount = parser.add_argument_group("pruning")
    amount.add_argument(
        "--budget", action="append", default=[], help="tokens or a share (may be repeated; default: each bundle's own)"
    )
    amount.add_argument("--keep", metavar="K,K'", help="tokens kept by stage 1 and stage 2: a row more")
    parser.add_argument("--batch-size", type=int, default=8, help="questions that are answered together (default: 8)")
    parser.add_argument("--max-new-tokens", type=int, help="of an answer (default: the task's)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the engine's choice); runs on the CPU")
    add_backend(parser)
    parser.add_argument(
        "--output", "-o", metavar="FOLDER", default="evaluation", help="for answers and tables (default: evaluation)"
    )
    parser.add_argument(
        "--compare-with", metavar="ROW", help="BUNDLE or BUNDLE@BUDGET to test the others against (default: the unpruned row)"
    )
    parser.add_argument("--plot", metavar="FILE", help="picture of accuracy over budget and time (extra `analysis`)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


def action(args: argparse.Namespace) -> None:
    from sts_export.cli.progress import count_bar
    from sts_export.cli.streams import say
    from sts_export.evaluation.evaluate import Evaluation, Settings, evaluate_bundles
    from sts_export.evaluation.results.comparing import compare
    from sts_export.evaluation.results.saving import check_plot, save_plot, save_tables
    from sts_export.evaluation.results.tables import to_json, to_markdown
    from sts_export.paths import user_path

    output, keep = user_path(args.output), asked_keep(args)
    if args.plot is not None:
        check_plot(args.plot)
    request = Evaluation(
        bundles=args.bundles,
        task=args.task,
        data=args.data,
        budgets=args.budget,
        keeps=[] if keep is None else [keep],
        limit=args.limit,
        settings=Settings(args.batch_size, args.max_new_tokens, output),
        compare_with=args.compare_with,
        threads=args.threads,
        backend=args.backend,
        plugins=args.plugins,
    )
    with count_bar(args.task) as progress:
        rows = evaluate_bundles(request, progress, lambda line: say(f"note: {line}"))
    comparisons = compare(rows, args.compare_with)
    save_tables(rows, comparisons, output)
    if args.plot is not None:
        save_plot(rows, args.plot)
    print(json.dumps(to_json(rows, comparisons)) if args.json else to_markdown(rows, comparisons))
