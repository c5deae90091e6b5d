"""`sts-export verify`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sts_export.cli.budgets import add_budget, asked
from sts_export.cli.parser import Parser, add_backend, command_parser

SUMMARY = "compare a bundle with the PyTorch reference"
PLACE = 30


def make_parser() -> Parser:
    parser = command_parser("verify", "Compare a bundle with PyTorch (extra `reference`), and its engines with ONNX Runtime.")
    parser.add_argument("--checkpoint", help="source checkpoint (default: the one the manifest names)")
    parser.add_argument("--image", action="append", default=[], help="picture (may be repeated; default: generated ones)")
    parser.add_argument("--prompt", action="append", default=[], help="prompt to use (may be repeated)")
    parser.add_argument("--pairs", type=int, default=4, help="generated image/prompt pairs (default: 4)")
    parser.add_argument("--max-new-tokens", type=int, default=16, help="greedy tokens to compare (default: 16)")
    add_budget(parser)
    add_backend(parser)
    parser.add_argument("--json", action="store_true")
    return parser


def action(args: argparse.Namespace) -> int:
    from sts_export.backends.choice import check_plugins
    from sts_export.tensorrt.runtimes import RUNTIMES
    from sts_export.verification.answers import format_report, verify

    if args.plugins is not None:
        check_plugins(args.backend)
    if args.backend in RUNTIMES:
        return _verify_engines(args)
    report = verify(args.bundle, args.checkpoint, backend=args.backend, plugins=args.plugins, **_requests(args))
    print(json.dumps(report.to_json()) if args.json else format_report(report))
    return 0 if report.passed else 1


def _verify_engines(args: argparse.Namespace) -> int:
    from sts_export.verification.engines_and_answers import format_engines, verify_engines

    report = verify_engines(args.bundle, args.backend, args.checkpoint, **_requests(args))
    print(json.dumps(report.to_json()) if args.json else format_engines(report))
    return 0 if report.passed else 1


def _requests(args: argparse.Namespace) -> dict[str, Any]:
    """What is asked: given pictures and prompts, or generated ones."""
    return {
        "images": args.image,
        "prompts": args.prompt,
        "pairs": args.pairs,
        "max_new_tokens": args.max_new_tokens,
        **asked(args),
    }
