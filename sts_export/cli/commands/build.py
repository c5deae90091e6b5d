"""`sts-export build`."""

from __future__ import annotations

import argparse
import json

from sts_export.cli.parser import Parser, command_parser
from sts_export.cli.progress import phase_bar
from sts_export.cli.streams import say
from sts_export.errors import RequestError

SUMMARY = "build the TensorRT engines of a bundle"
PLACE = 40


def make_parser() -> Parser:
    from sts_export.tensorrt.runtimes import RUNTIMES

    parser = command_parser("build", "Build the TensorRT engines of a bundle, into the bundle.")
    parser.add_argument("--runtime", choices=RUNTIMES, help="default: the one that is installed")
    parser.add_argument("--target", metavar="SM", help="build ahead for a GPU such as sm_89 (tensorrt-rtx only)")
    parser.add_argument("--max-batch", type=int, metavar="N", help="requests run together (default: as before, at first 1)")
    parser.add_argument(
        "--plugins",
        metavar="FILE",
        help="libsts_plugins.so (default: the bundle's, else build/plugins, else the one of sts-export-kernels)",
    )
    parser.add_argument("--no-plugins", action="store_true", help="pruning stages as standard operators")
    parser.add_argument(
        "--graphs-only", action="store_true", help="write graphs and trtexec commands instead, to build on another machine"
    )
    parser.add_argument(
        "--tensorrt-version", metavar="10.3", help="with --graphs-only (default: the installed one, else newest)"
    )
    parser.add_argument("--optimization-level", type=int, metavar="0-5", help="0 builds fast, 5 runs fast")
    parser.add_argument("--workspace", type=int, metavar="MB", help="memory that one kernel may use")
    parser.add_argument("--ignore-memory", action="store_true", help="build even if the memory seems too small")
    parser.add_argument("--force", action="store_true", help="build again what is up to date")
    parser.add_argument("--json", action="store_true", help="print the build record")
    return parser


def action(args: argparse.Namespace) -> None:
    if args.graphs_only:
        return _build_graphs(args)
    if args.tensorrt_version is not None:
        raise RequestError("engines are for the TensorRT that is installed; --tensorrt-version belongs to --graphs-only")
    from sts_export.tensorrt.build import BuildRequest, build
    from sts_export.tensorrt.build_report import summary, warnings

    request = BuildRequest(
        bundle=args.bundle,
        runtime=args.runtime,
        target=args.target,
        max_batch=args.max_batch,
        plugins=args.plugins,
        use_plugins=not args.no_plugins,
        optimization_level=args.optimization_level,
        workspace_mb=args.workspace,
        ignore_memory=args.ignore_memory,
        force=args.force,
    )
    with phase_bar() as progress:
        report = build(request, progress)
    print(json.dumps(report.to_json()) if args.json else summary(report))
    for warning in warnings(report):
        say(warning)
    return None


def _build_graphs(args: argparse.Namespace) -> None:
    from sts_export.tensorrt.portable.graphs import GraphsRequest, summary, write_graphs

    if args.target is not None:
        raise RequestError("--graphs-only builds nothing; leave --target out")
    request = GraphsRequest(
        bundle=args.bundle,
        runtime=args.runtime or "tensorrt",
        version=args.tensorrt_version,
        plugins=args.plugins,
        use_plugins=not args.no_plugins,
        max_batch=1 if args.max_batch is None else args.max_batch,
        optimization_level=args.optimization_level,
        workspace_mb=args.workspace,
    )
    report = write_graphs(request)
    print(json.dumps(report.to_json()) if args.json else summary(report))
