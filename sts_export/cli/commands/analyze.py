"""`sts-export analyze`."""

from __future__ import annotations

import argparse
import json

from sts_export.cli.parser import Parser, command_parser

SUMMARY = "score how a vision tower's attention follows its features"
PLACE = 80


def make_parser() -> Parser:
    parser = command_parser(
        "analyze",
        "KNN consistency score of every layer of the vision tower, its curve, and t-SNE maps (extra `analysis`).",
    )
    parser.add_argument("--images", metavar="FOLDER", required=True, help="folder of pictures; folders in it are not looked at")
    parser.add_argument("--output", "-o", metavar="FOLDER", required=True, help="folder to make, for JSON and PNG files")
    parser.add_argument("--checkpoint", help="source checkpoint (default: the one the manifest names)")
    parser.add_argument("--tsne", metavar="COUNT", type=int, default=3, help="pictures that get a t-SNE map (default: 3)")
    parser.add_argument("--json", action="store_true")
    return parser


def action(args: argparse.Namespace) -> None:
    from sts_export.analysis.tower.analyze import analyze
    from sts_export.analysis.tower.report import format_report
    from sts_export.cli.progress import count_bar

    with count_bar("pictures") as progress:
        report = analyze(args.bundle, args.images, args.output, args.checkpoint, maps=args.tsne, progress=progress)
    print(json.dumps(report.to_json()) if args.json else format_report(report))
