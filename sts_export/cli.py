"""`sts-export`: arguments in, one call, text or JSON out.  No logic of its own.

sts-export --model llava-1.5-7b --budget 64        export (the main job; `export` may be left out)
sts-export run BUNDLE --image cat.jpg --prompt "What is on the table?"
sts-export verify | bench | inspect | show BUNDLE …
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

from sts_export.errors import BudgetError, RequestError, StsExportError

COMMANDS = ("export", "run", "verify", "bench", "inspect", "show")


class _Parser(argparse.ArgumentParser):
    """argparse prints its whole usage on errors; one line has to do.  Options are written out."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed = super().parse_args(args, namespace)
        for action in self._actions:  # Python before 3.13 makes an empty list of `--budget=--`
            if action.nargs is None and action.default is None and getattr(parsed, action.dest, None) == []:
                self.error(f"argument {'/'.join(action.option_strings) or action.dest}: expected one argument")
        return parsed

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "export"
    try:
        if command == "export" and arguments and not arguments[0].startswith("-"):
            raise RequestError(f"unknown command {arguments[0]!r}: choose one of {', '.join(COMMANDS)}")
        parser = _PARSERS[command]()
        code = int(_ACTIONS[command](parser.parse_args(arguments)) or 0)
        sys.stdout.flush()
        return code
    except StsExportError as error:
        # Names of tensors and files may hold line breaks.
        print(f"sts-export: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("sts-export: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # whoever reads the output, such as `head`, has seen enough
            print(f"sts-export: {' '.join(str(error).split())}; check disk and permissions", file=sys.stderr)
        _drop_output()
        return 1


def _drop_output() -> None:
    """What is still buffered has nowhere to go; Python would complain about it at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(command: str, description: str, *, bundle: bool = True) -> _Parser:
    parser = _Parser(prog="sts-export" if command == "export" else f"sts-export {command}", description=description)
    if bundle:
        parser.add_argument("bundle", metavar="BUNDLE", help="folder written by sts-export")
    return parser


def _export_parser() -> _Parser:
    from sts_export.bundle import QUANTIZATIONS
    from sts_export.exporter import DEFAULT_NEW_TOKENS, DEFAULT_PROMPT_TOKENS
    from sts_export.graphs.configs import Dtype
    from sts_export.hub import ALIASES, DEMO
    from sts_export.pruning import DEFAULT_EPSILON, METHODS, Anchor, Positions, ScoreLayer

    parser = _parser("export", __doc__ or "", bundle=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=f"sts-export {_version()}")
    parser.add_argument("--model", required=True, help=f"checkpoint folder, hub id, or {', '.join([DEMO, *ALIASES])}")
    amount = parser.add_argument_group("pruning")
    amount.add_argument("--budget", help="average visual tokens per decoder layer: 64, or 20%%")
    amount.add_argument("--keep", metavar="K,K'", help="tokens kept by stage 1 and stage 2, instead of --budget")
    amount.add_argument("--method", default="sts", help=f"one of {', '.join(METHODS)} (default: sts)")
    amount.add_argument("--prune-layer", type=int, metavar="L", help="decoder layers before stage 2 (default: as the paper)")
    amount.add_argument("--anchor", choices=get_args(Anchor), default="mean", help="first token of stage 1 (default: mean)")
    amount.add_argument(
        "--positions",
        choices=get_args(Positions),
        help="of rows in the pruned prompt (default: reindex; keep for models with M-RoPE)",
    )
    amount.add_argument("--score-layer", choices=get_args(ScoreLayer), default="own", help="stage-2 attention (default: own)")
    amount.add_argument("--epsilon", type=float, default=DEFAULT_EPSILON, help="in the repulsion potential (default: 1e-6)")
    result = parser.add_argument_group("result")
    result.add_argument("--output", "-o", help="bundle folder (default: MODEL-bBUDGET here)")
    result.add_argument("--dtype", choices=get_args(Dtype), help="default: the checkpoint's")
    result.add_argument("--quantize", choices=QUANTIZATIONS, help="smaller, faster weights for CPU; verify reports the loss")
    result.add_argument(
        "--weights", choices=("copy", "link"), default="copy", help="link: instant, weights stay where they are"
    )
    result.add_argument("--max-prompt-tokens", type=int, default=DEFAULT_PROMPT_TOKENS, help="text tokens of a prompt (512)")
    result.add_argument("--max-new-tokens", type=int, default=DEFAULT_NEW_TOKENS, help="tokens of an answer (512)")
    result.add_argument(
        "--max-visual-tokens",
        type=int,
        metavar="V",
        help="visual tokens of a prompt before pruning, all images (default: one largest image)",
    )
    result.add_argument("--force", action="store_true", help="replace an existing bundle")
    return parser


def _version() -> str:
    from importlib.metadata import version

    return version("sts-export")


def _parse_keep(text: str) -> tuple[int, int]:
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError:
        raise BudgetError(f"--keep {text!r} is not two numbers: give K,K' such as --keep 96,32") from None
    return first, second


def _export(args: argparse.Namespace) -> None:
    from sts_export.describe import large_selection, summary
    from sts_export.exporter import ExportRequest, export

    request = ExportRequest(
        model=args.model,
        output=args.output,
        budget=args.budget,
        keep=None if args.keep is None else _parse_keep(args.keep),
        method=args.method,
        prune_layer=args.prune_layer,
        choices={
            name: getattr(args, name)
            for name in ("anchor", "positions", "score_layer", "epsilon")
            if getattr(args, name) is not None
        },
        dtype=args.dtype,
        quantize=args.quantize,
        weights=args.weights,
        max_prompt_tokens=args.max_prompt_tokens,
        max_new_tokens=args.max_new_tokens,
        max_visual_tokens=args.max_visual_tokens,
        force=args.force,
    )
    with _progress_bar("weights") as progress:
        bundle = export(request, progress)
    print(f"{bundle.folder}: {summary(bundle.manifest)}")
    if pruning_warning := large_selection(bundle.manifest):
        print(pruning_warning, file=sys.stderr)
    if bundle.manifest.dtype == "bfloat16":
        print("note: ONNX Runtime on CPU cannot run bfloat16; for that export with --dtype float32", file=sys.stderr)


class _progress_bar:
    """A byte counter on a terminal, nothing elsewhere."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None

    def __enter__(self) -> Any:
        return self._update

    def _update(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=self._label, unit="B", unit_scale=True, disable=None)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _run_parser() -> _Parser:
    parser = _parser("run", "Ask a bundle; the answer is printed as it is generated.")
    said = parser.add_mutually_exclusive_group(required=True)
    said.add_argument("--prompt")
    said.add_argument("--messages", metavar="FILE", help='a chat as JSON: [{"role": ..., "content": ...}, ...]')
    parser.add_argument("--system", help="system prompt, with --prompt")
    parser.add_argument("--image", action="append", default=[], help="picture file (may be repeated; none for text only)")
    _add_generation(parser)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int, default=0, help="0 is off")
    parser.add_argument("--top-p", type=float, default=1.0, help="1 is off")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--stop", action="append", default=[], help="text that ends the answer (may be repeated)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


def _add_generation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", type=int, help="default: what the bundle holds")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the engine's choice)")


def _run(args: argparse.Namespace) -> None:
    from sts_export.runtime.pipeline import Pipeline
    from sts_export.runtime.prompt import read_messages
    from sts_export.runtime.sampling import SamplingConfig

    if args.messages is not None and args.system is not None:
        raise RequestError("--system belongs to --prompt: with --messages, put it into the file")
    prompt = args.prompt if args.messages is None else read_messages(args.messages)
    sampling = SamplingConfig(args.temperature, args.top_k, args.top_p, args.seed)
    pipeline = Pipeline(args.bundle, threads=args.threads)
    if args.system is not None:
        prompt = pipeline.tokenizer.with_system(args.system, args.prompt, len(args.image))
    stream = pipeline.stream(
        prompt,
        args.image,
        max_new_tokens=args.max_new_tokens,
        sampling=sampling,
        stop=args.stop,
    )
    for piece in stream:
        if not args.json:
            print(piece, end="", flush=True)
    print(json.dumps(stream.result.to_json()) if args.json else "")


def _verify_parser() -> _Parser:
    parser = _parser("verify", "Compare a bundle with the PyTorch reference (extra `reference`).")
    parser.add_argument("--checkpoint", help="source checkpoint (default: the one the manifest names)")
    parser.add_argument("--image", action="append", default=[], help="picture (may be repeated; default: generated ones)")
    parser.add_argument("--prompt", action="append", default=[], help="prompt to use (may be repeated)")
    parser.add_argument("--pairs", type=int, default=4, help="generated image/prompt pairs (default: 4)")
    parser.add_argument("--max-new-tokens", type=int, default=16, help="greedy tokens to compare (default: 16)")
    parser.add_argument("--json", action="store_true")
    return parser


def _verify(args: argparse.Namespace) -> int:
    from sts_export.verify import format_report, verify

    report = verify(
        args.bundle,
        args.checkpoint,
        images=args.image,
        prompts=args.prompt,
        pairs=args.pairs,
        max_new_tokens=args.max_new_tokens,
    )
    print(json.dumps(report.to_json()) if args.json else format_report(report))
    return 0 if report.passed else 1


def _bench_parser() -> _Parser:
    parser = _parser("bench", "Time a bundle, or two in turn.")
    parser.add_argument("--against", metavar="BUNDLE", help="second bundle, run alternately; ratios are printed")
    parser.add_argument("--image", help="picture file (default: a generated one)")
    parser.add_argument("--prompt", default="Describe the picture in detail.")
    _add_generation(parser)
    parser.add_argument("--repeats", type=int, default=5, help="measured runs of each (default: 5)")
    parser.add_argument("--json", action="store_true")
    return parser


def _bench(args: argparse.Namespace) -> None:
    from sts_export.bench import BenchTask, bench_bundles, format_table

    new_tokens = 32 if args.max_new_tokens is None else args.max_new_tokens
    task = BenchTask(args.image, args.prompt, new_tokens, args.repeats, args.threads)
    results = bench_bundles([args.bundle, *([args.against] if args.against else [])], task)
    print(json.dumps([result.to_json() for result in results]) if args.json else format_table(results))


def _inspect_parser() -> _Parser:
    parser = _parser("inspect", "What is in a bundle.")
    parser.add_argument("--check", action="store_true", help="compare every file with its sha256")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    return parser


def _inspect(args: argparse.Namespace) -> None:
    from sts_export.bundle import open_bundle
    from sts_export.describe import describe

    bundle = open_bundle(args.bundle, check_all=args.check)
    print(json.dumps(bundle.manifest.to_json()) if args.json else describe(bundle))


def _show_parser() -> _Parser:
    parser = _parser("show", "Draw which visual tokens survived each stage.")
    parser.add_argument("--image", action="append", required=True, help="picture file (may be repeated)")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--output", "-o", required=True, help="picture to write, such as kept.png")
    _add_generation(parser)
    return parser


def _show(args: argparse.Namespace) -> None:
    from sts_export.analysis.picture import save_kept_picture

    result = save_kept_picture(args.bundle, args.image, args.prompt, args.output, args.max_new_tokens, args.threads)
    counts = result.visual_tokens
    print(f"{args.output}: {counts.total} -> {counts.stage1} -> {counts.stage2} visual tokens; answer: {result.text.strip()}")


_PARSERS = {
    "export": _export_parser,
    "run": _run_parser,
    "verify": _verify_parser,
    "bench": _bench_parser,
    "inspect": _inspect_parser,
    "show": _show_parser,
}
_ACTIONS: dict[str, Any] = {
    "export": _export,
    "run": _run,
    "verify": _verify,
    "bench": _bench,
    "inspect": _inspect,
    "show": _show,
}

if __name__ == "__main__":
    sys.exit(main())
