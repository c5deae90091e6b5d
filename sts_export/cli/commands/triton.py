"""`sts-export triton`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sts_export.cli.parser import Parser, command_parser
from sts_export.errors import RequestError

SUMMARY = "write a model repository for Triton Inference Server"
PLACE = 27


def make_parser() -> Parser:
    from sts_export.backends.choice import BACKENDS

    parser = command_parser("triton", "Write a model repository for Triton Inference Server, with files for containers.")
    parser.add_argument(
        "--output", "-o", default="model_repository", metavar="REPOSITORY", help="new folder (default: model_repository)"
    )
    parser.add_argument("--model-name", metavar="NAME", help="that clients ask for (default: the bundle's folder name)")
    parser.add_argument("--gpus", metavar="0,1", help="numbers of the GPUs that run it (default: none, the CPU)")
    parser.add_argument("--instances", type=int, default=1, metavar="N", help="on each GPU, or on the CPU (default: 1)")
    parser.add_argument("--slots", type=int, help="requests that an instance answers together (default: 8, or the engines')")
    parser.add_argument("--max-queue-size", type=int, metavar="N", help="requests that wait (default: 64)")
    parser.add_argument("--longest-wait", type=float, metavar="SECONDS", help="in the queue (default: as long as it takes)")
    parser.add_argument(
        "--backend", choices=BACKENDS, help="default: on GPUs the bundle's engines, else onnxruntime-cuda; else onnxruntime"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of an instance (default: the engine's choice)")
    parser.add_argument(
        "--build-at-start", action="store_true", help="TensorRT's engines are built by the container's first start, in a volume"
    )
    kept = "for features of pictures and what was kept of them (default: 256MiB)"
    parser.add_argument("--feature-cache", default="256MiB", metavar="SIZE", help=kept)
    parser.add_argument("--no-prefix-reuse", action="store_true", help="compute every turn of a chat from its beginning")
    parser.add_argument(
        "--allow-image-hosts",
        action="append",
        default=[],
        metavar="HOST",
        help="to fetch pictures from; *.example.org, * for any (may be repeated)",
    )
    parser.add_argument("--allow-image-folder", metavar="FOLDER", help="in which file URLs may name pictures")
    parser.add_argument("--max-picture", default="20MiB", metavar="SIZE", help="of a picture's file (default: 20MiB)")
    parser.add_argument("--with-encoder", action="store_true", help="a second model that returns features of pictures")
    parser.add_argument("--link", action="store_true", help="link to the bundle, for a Triton on this machine; no container")
    parser.add_argument("--wheel", metavar="FILE", help="of sts-export, for the container (default: from the package index)")
    parser.add_argument(
        "--kernels",
        metavar="PATH",
        help="for the container: a wheel of sts-export-kernels, or a checkout of sts-export to compile TensorRT's plugins from",
    )
    parser.add_argument("--force", action="store_true", help="replace a repository that this command has written")
    return parser


def action(args: argparse.Namespace) -> None:
    from sts_export.serving.sizes import read_size
    from sts_export.triton.repository.options import RepositoryOptions
    from sts_export.triton.repository.writing import write_repository

    if args.longest_wait is not None and not args.longest_wait > 0:
        raise RequestError(f"--longest-wait must be seconds above 0, not {args.longest_wait:g}; leave it out for no limit")

    plan = write_repository(
        RepositoryOptions(
            bundle=args.bundle,
            output=args.output,
            model_name=args.model_name,
            slots=args.slots,
            max_queue_size=args.max_queue_size,
            longest_wait=args.longest_wait or 0.0,
            gpus=_gpus(args.gpus),
            instances=args.instances,
            backend=args.backend,
            threads=args.threads,
            feature_cache=read_size("--feature-cache", args.feature_cache),
            reuse_prefixes=not args.no_prefix_reuse,
            allow_image_hosts=tuple(args.allow_image_hosts),
            allow_image_folder=None if args.allow_image_folder is None else Path(args.allow_image_folder),
            max_picture=read_size("--max-picture", args.max_picture),
            link=args.link,
            with_encoder=args.with_encoder,
            build_at_start=args.build_at_start,
            wheel=None if args.wheel is None else Path(args.wheel),
            kernels=None if args.kernels is None else Path(args.kernels),
            force=args.force,
        )
    )
    print(f"{plan.output}: {', '.join(plan.models)} on {plan.settings.backend}, {plan.settings.slots} slots; see its README.md")


def _gpus(text: str | None) -> tuple[int, ...]:
    """``0,1`` -> (0, 1)."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) <= 4 for part in parts):
        raise RequestError(f"--gpus are numbers such as 0 or 0,1, not {text[:40]!r}; correct it")
    return tuple(map(int, parts))
