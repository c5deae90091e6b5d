"""`sts-export inspect`."""

from __future__ import annotations

import argparse
import json

from sts_export.cli.parser import Parser, command_parser


def make_parser() -> Parser:
    parser = command_parser("inspect", "What is in a bundle.")
    parser.add_argument("--check", action="store_true", help="compare every file with its sha256")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    return parser


def action(args: argparse.Namespace) -> None:
    from sts_export.bundle import open_bundle
    from sts_export.describe import describe

    bundle = open_bundle(args.bundle, check_all=args.check)
    print(json.dumps(bundle.manifest.to_json()) if args.json else describe(bundle, checked=args.check))
