"""`sts-export inspect`."""

from __future__ import annotations

import argparse
import json

from sts_export.cli.parser import Parser, command_parser

SUMMARY = "what is in a bundle"
PLACE = 60


def make_parser() -> Parser:
    parser = command_parser("inspect", "What is in a bundle.")
    parser.add_argument("--check", action="store_true", help="compare every file with its sha256")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    return parser


def action(args: argparse.Namespace) -> None:
    from sts_export.bundle.description import as_text, checked, describe
    from sts_export.bundle.manifest import open_bundle
    from sts_export.tensorrt.inventory import check_engines, describe_engines

    bundle = open_bundle(args.bundle, check_all=args.check)
    engines = check_engines(bundle) if args.check else None
    if args.json:
        print(json.dumps(bundle.manifest.to_json()))
        return
    lines = [*describe(bundle), *describe_engines(bundle)]
    if engines is not None:
        lines.append(checked(bundle.manifest, engines))
    print(as_text(lines))
