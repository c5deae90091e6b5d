"""`sts-export run`."""

from __future__ import annotations

import argparse
import json

from sts_export.cli.budgets import add_budget, asked
from sts_export.cli.choosing import add_choice, checkpoint_sampling, logits_config, plain_sampling
from sts_export.cli.parser import Parser, add_generation, command_parser
from sts_export.errors import RequestError

SUMMARY = "ask a bundle about pictures"
PLACE = 20


def make_parser() -> Parser:
    parser = command_parser("run", "Ask a bundle; the answer is printed as it is generated.")
    said = parser.add_mutually_exclusive_group(required=True)
    said.add_argument("--prompt")
    said.add_argument("--messages", metavar="FILE", help='a chat as JSON: [{"role": ..., "content": ...}, ...]')
    parser.add_argument("--system", help="system prompt, with --prompt")
    parser.add_argument("--image", action="append", default=[], help="picture file (may be repeated; none for text only)")
    add_budget(parser)
    add_generation(parser)
    add_choice(parser)
    parser.add_argument("--stop", action="append", help="text that ends the answer (may be repeated)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    help_logprobs = "with --json: log-probabilities of the tokens, and of the N likeliest (0 to 20)"
    parser.add_argument("--logprobs", type=int, metavar="N", help=help_logprobs)
    return parser


def action(args: argparse.Namespace) -> None:
    from sts_export.generation.pipeline import Pipeline
    from sts_export.requests.messages import read_messages

    if args.messages is not None and args.system is not None:
        raise RequestError("--system belongs to --prompt: with --messages, put it into the file")
    if args.logprobs is not None and not args.json:
        raise RequestError("--logprobs belongs to --json: printed text has no place for them; add --json")
    prompt = args.prompt if args.messages is None else read_messages(args.messages)
    sampling, logits, pruning = plain_sampling(args), logits_config(args), asked(args)
    pipeline = Pipeline(args.bundle, threads=args.threads, backend=args.backend, plugins=args.plugins)
    if args.system is not None:
        prompt = pipeline.tokenizer.with_system(args.system, args.prompt, len(args.image))
    stream = pipeline.stream(
        prompt,
        args.image,
        max_new_tokens=args.max_new_tokens,
        sampling=sampling or checkpoint_sampling(args, pipeline),
        logits=logits,
        stop=args.stop,
        logprobs=args.logprobs,
        **pruning,
    )
    for piece in stream:
        if not args.json:
            print(piece, end="", flush=True)
    print(json.dumps(stream.result.to_json()) if args.json else "")
