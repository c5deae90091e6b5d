"""`sts-export serve`."""

from __future__ import annotations

import argparse
from contextlib import suppress
from importlib.util import find_spec

from sts_export.cli.parser import Parser, add_backend, command_parser
from sts_export.errors import RequestError

SUMMARY = "answer OpenAI's API over HTTP"
PLACE = 25
_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "httpcore2", "idna")


def make_parser() -> Parser:
    parser = command_parser("serve", "Serve a bundle: OpenAI's chat completions and completions, metrics, and health.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one (default: 8080)")
    parser.add_argument(
        "--allowed-hosts",
        action="append",
        metavar="NAME",
        help="that requests may have as Host; *.example.org, * for any (may be repeated; default: loopback names where "
        "--host is one, else any)",
    )
    parser.add_argument("--model-name", metavar="NAME", help="that clients ask for (default: the bundle's folder name)")
    parser.add_argument("--api-key-file", metavar="FILE", help="keys, one a line, one of which clients have to send")
    room = parser.add_mutually_exclusive_group()
    room.add_argument("--slots", type=int, help="requests that are answered together (default: 8)")
    room.add_argument("--memory", metavar="SIZE", help="for KV caches, such as 2GiB: as many slots as fit")
    parser.add_argument("--most-waiting", type=int, default=64, metavar="N", help="requests in the queue (default: 64)")
    parser.add_argument(
        "--most-connections", type=int, metavar="N", help="open at a time (default: 512, or twice the slots and the queue)"
    )
    parser.add_argument("--longest-wait", type=float, metavar="SECONDS", help="in the queue (default: as long as it takes)")
    kept = "for features of pictures and what was kept of them (default: 256MiB)"
    parser.add_argument("--feature-cache", default="256MiB", metavar="SIZE", help=kept)
    parser.add_argument("--max-body", default="32MiB", metavar="SIZE", help="of a request (default: 32MiB)")
    parser.add_argument(
        "--allow-image-hosts",
        action="append",
        default=[],
        metavar="HOST",
        help="to fetch pictures from; *.example.org, * for any (may be repeated)",
    )
    parser.add_argument("--allow-image-folder", metavar="FOLDER", help="in which file URLs may name pictures")
    parser.add_argument("--max-picture", default="20MiB", metavar="SIZE", help="of a picture's file (default: 20MiB)")
    parser.add_argument("--no-prefix-reuse", action="store_true", help="compute every turn of a chat from its beginning")
    parser.add_argument("--page-examples", metavar="FOLDER", help="of PNG pictures that the page at / offers")
    parser.add_argument("--drain", type=float, default=30.0, metavar="SECONDS", help="for answers at the end (default: 30)")
    parser.add_argument("--log-prompts", action="store_true", help="write the text of prompts into the log")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the engine's choice); runs on the CPU")
    add_backend(parser)
    return parser


def action(args: argparse.Namespace) -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise RequestError(f"{missing[0]} is not installed; pip install 'sts-export[serve]'")
    from sts_export.bundle.manifest import open_bundle
    from sts_export.cli.signals import Terminated
    from sts_export.demo import PICTURES_DIR
    from sts_export.generation.pipeline import BATCH_SIZE, Pipeline
    from sts_export.generation.scheduling.scheduler import Scheduler
    from sts_export.paths import user_path
    from sts_export.requests.request import check_count
    from sts_export.serving.hosts import HostRules
    from sts_export.serving.loading import load_engine
    from sts_export.serving.logs import start_logging
    from sts_export.serving.pictures.reading import picture_bytes
    from sts_export.serving.pictures.rules import PictureRules
    from sts_export.serving.server import Place, serve
    from sts_export.serving.service import Service
    from sts_export.serving.settings import Settings, read_api_keys
    from sts_export.serving.sizes import read_size, slots_within

    place = Place(args.host, args.port, args.drain)
    features = read_size("--feature-cache", args.feature_cache)
    bundle = open_bundle(args.bundle)
    slots = BATCH_SIZE if args.slots is None else args.slots
    check_count("--slots", slots)
    check_count("--most-waiting", args.most_waiting)
    if args.longest_wait is not None and not args.longest_wait > 0:
        raise RequestError(f"--longest-wait must be seconds above 0, not {args.longest_wait:g}; leave it out for no limit")
    if args.memory is not None:
        slots = slots_within(bundle.manifest, read_size("--memory", args.memory))
    connections = max(512, 2 * (slots + args.most_waiting)) if args.most_connections is None else args.most_connections
    check_count("--most-connections", connections)
    examples = PICTURES_DIR if bundle.manifest.source.model == "demo" else None
    if args.page_examples is not None:
        examples = user_path(args.page_examples)
    settings = Settings(
        model=args.model_name or bundle.folder.resolve().name,
        hosts=place.hosts if args.allowed_hosts is None else HostRules(tuple(args.allowed_hosts)),
        api_keys=() if args.api_key_file is None else read_api_keys(args.api_key_file),
        most_body=read_size("--max-body", args.max_body),
        most_admitted=slots + args.most_waiting,
        most_connections=connections,
        log_prompts=args.log_prompts,
        examples=examples,
    )
    rules = PictureRules(
        hosts=tuple(args.allow_image_hosts),
        folder=None if args.allow_image_folder is None else user_path(args.allow_image_folder),
        most_bytes=read_size("--max-picture", args.max_picture),
    )
    start_logging()

    def open_pipeline() -> Pipeline:
        return Pipeline(args.bundle, threads=args.threads, backend=args.backend, plugins=args.plugins, feature_cache=features)

    def open_scheduler(pipeline: Pipeline) -> Scheduler:
        return Scheduler(
            pipeline,
            slots=slots,
            most_waiting=args.most_waiting,
            longest_wait=args.longest_wait,
            reuse_prefixes=not args.no_prefix_reuse,
        )

    with suppress(KeyboardInterrupt, Terminated):  # how a server is ended
        serve(
            Service(settings), lambda: load_engine(open_pipeline, open_scheduler), lambda url: picture_bytes(url, rules), place
        )
