"""`python -m benchmarks.serving.openvino FOLDER`: OpenAI's chat completions of OpenVINO GenAI, from the repository's root.

Says that it is ready on the standard error, as `sts-export serve` does: a line of JSON with ``message`` and ``address``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from pathlib import Path

from benchmarks.serving.openvino.engine import start
from benchmarks.serving.openvino.front import Front, http_server


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="a model that optimum-intel exported for OpenVINO")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081, help="0 takes a free one (default: 8081)")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--batched-tokens", type=int, default=256, help="of a step (default: GenAI's 256)")
    parser.add_argument("--reuse", action="store_true", help="keep KV blocks of past prompts")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    ours, theirs = multiprocessing.Pipe()
    chosen = (theirs, args.folder, args.slots, args.batched_tokens, args.reuse)
    process = multiprocessing.get_context("spawn").Process(target=start, args=chosen)
    process.start()
    theirs.close()  # so that the end of that process is seen here
    try:
        ours.recv()
    except EOFError:
        sys.exit("the engine did not start: see above")
    server = http_server(Front(ours), args.host, args.port)
    address = f"http://{args.host}:{server.server_address[1]}"
    print(json.dumps({"message": "ready", "address": address}), file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
