"""`sts-export show`."""

from __future__ import annotations

import argparse

from sts_export.cli.budgets import add_keep, asked_keep
from sts_export.cli.parser import Parser, add_generation, command_parser

SUMMARY = "draw which visual tokens survived each stage, bundles and budgets side by side"
PLACE = 70


def make_parser() -> Parser:
    text = "Draw which visual tokens survived each stage: a column for every bundle and budget."
    parser = command_parser("show", text, bundle=False)
    parser.add_argument("bundles", metavar="BUNDLE", nargs="+", help="folder written by sts-export (may be several)")
    parser.add_argument("--image", action="append", required=True, help="picture file (may be repeated)")
    parser.add_argument("--prompt", required=True)
    parser.add_argument(
        "--budget", action="append", default=[], help="tokens or a share (may be repeated; default: the export's budget)"
    )
    add_keep(parser)
    parser.add_argument("--output", "-o", required=True, help="picture or page to write, such as kept.png or kept.html")
    add_generation(parser)
    return parser


def action(args: argparse.Namespace) -> None:
    from sts_export.analysis.kept.answers import Question
    from sts_export.analysis.kept.sheet import all_in_words
    from sts_export.analysis.kept.show import save_kept

    engine = (args.threads, args.backend, args.plugins)
    question = Question(args.bundles, args.image, args.prompt, args.budget, asked_keep(args), args.max_new_tokens, *engine)
    for panel in save_kept(question, args.output):
        place = args.output if len(args.bundles) * max(1, len(args.budget)) == 1 else f"{args.output}: {panel.title}"
        print(f"{place}: {all_in_words(panel)}; answer: {_shortened(panel.answer)}")


def _shortened(answer: str, most: int = 200) -> str:
    return answer if len(answer) <= most else f"{answer[:most].rstrip()}..."
