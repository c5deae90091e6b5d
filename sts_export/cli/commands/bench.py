"""`sts-export bench`."""

from __future__ import annotations

import argparse
import json

from sts_export.cli.budgets import add_budget, asked
from sts_export.cli.parser import Parser, add_generation, command_parser

SUMMARY = "time a bundle, or two in turn"
PLACE = 50


def make_parser() -> Parser:
    parser = command_parser("bench", "Time a bundle, or two in turn.")
    parser.add_argument("--against", metavar="BUNDLE", help="second bundle, run alternately; ratios are printed")
    parser.add_argument("--image", help="picture file (default: a generated one)")
    parser.add_argument("--prompt", default="Describe the picture in detail.")
    add_budget(parser)
    add_generation(parser)
    parser.add_argument("--repeats", type=int, default=5, help="measured runs of each (default: 5)")
    parser.add_argument("--json", action="store_true")
    return parser


def action(args: argparse.Namespace) -> None:
    from sts_export.measuring.bench import BenchTask, bench_bundles, format_table

    new_tokens = 32 if args.max_new_tokens is None else args.max_new_tokens
    engine = (args.threads, args.backend, args.plugins)
    task = BenchTask(args.image, args.prompt, new_tokens, args.repeats, *engine, **asked(args))
    results = bench_bundles([args.bundle, *([args.against] if args.against else [])], task)
    print(json.dumps([result.to_json() for result in results]) if args.json else format_table(results))
