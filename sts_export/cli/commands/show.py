"""`sts-export show`."""

from __future__ import annotations

import argparse

from sts_export.cli.parser import Parser, add_generation, command_parser

SUMMARY = "draw which visual tokens survived each stage"
PLACE = 70


def make_parser() -> Parser:
    parser = command_parser("show", "Draw which visual tokens survived each stage.")
    parser.add_argument("--image", action="append", required=True, help="picture file (may be repeated)")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--output", "-o", required=True, help="picture to write, such as kept.png")
    add_generation(parser)
    return parser


def action(args: argparse.Namespace) -> None:
    from sts_export.analysis.picture import save_kept_picture

    result = save_kept_picture(
        args.bundle,
        args.image,
        args.prompt,
        args.output,
        args.max_new_tokens,
        args.threads,
        args.backend,
        args.plugins,
    )
    counts = result.visual_tokens
    print(
        f"{args.output}: {counts.total} -> {counts.stage1} -> {counts.stage2} visual tokens; answer: {_shortened(result.text)}"
    )


def _shortened(answer: str, most: int = 200) -> str:
    text = answer.strip()
    return text if len(text) <= most else f"{text[:most].rstrip()}..."
