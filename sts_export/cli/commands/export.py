"""`sts-export [export]`."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from sts_export.cli.budgets import asked_keep
from sts_export.cli.commands import summaries
from sts_export.cli.parser import Parser, command_parser
from sts_export.cli.progress import byte_bar
from sts_export.cli.streams import say

SUMMARY = "checkpoint to bundle; the word may be left out, and its options are below"
PLACE = 10
HELP = """\
Prune the visual tokens of a vision-language model and export it as a bundle of ONNX graphs.

  sts-export --model llava-1.5-7b --budget 64
  sts-export run llava-1.5-7b-b64 --image cat.jpg --prompt "What is on the table?"
  sts-export --model qwen2.5-vl-7b --budget 20% --weights link

commands (sts-export COMMAND --help says more):
"""


def make_parser() -> Parser:
    from sts_export.dtypes import QUANTIZATIONS
    from sts_export.exporting.sizes import DEFAULT_NEW_TOKENS, DEFAULT_PROMPT_TOKENS
    from sts_export.families import aliases
    from sts_export.hub import DEMO
    from sts_export.pruning.config import Positions
    from sts_export.pruning.registry import method_names, stage_names
    from sts_export.pruning.stage1.repulsion import Anchor
    from sts_export.pruning.stage2.last_token import ScoreLayer

    parser = command_parser("export", HELP + _commands(), bundle=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=f"sts-export {_version()}")
    parser.add_argument(
        "--model", required=True, help=f"folder of a checkpoint or adapter, hub id, or {', '.join([DEMO, *aliases()])}"
    )
    amount = parser.add_argument_group("pruning")
    amount.add_argument("--budget", help="average visual tokens per decoder layer: 64, or 20%%")
    amount.add_argument("--keep", metavar="K,K'", help="tokens kept by stage 1 and stage 2, instead of --budget")
    amount.add_argument("--method", help=f"a pair of stages: one of {_said(method_names())} (default: sts)")
    amount.add_argument(
        "--stage1", metavar="NAME[:KEY=VALUE,…]", help=f"stage before the LLM: one of {_said(stage_names('stage1'))}"
    )
    amount.add_argument(
        "--stage2", metavar="NAME[:KEY=VALUE,…]", help=f"stage inside the LLM: one of {_said(stage_names('stage2'))}"
    )
    amount.add_argument("--list-methods", action=_ListMethods, help="print methods, stages and their settings")
    amount.add_argument("--prune-layer", type=int, metavar="L", help="decoder layers before stage 2 (default: the method's)")
    amount.add_argument("--anchor", choices=get_args(Anchor), help="first token of stage 1 (default: mean)")
    amount.add_argument(
        "--positions",
        choices=get_args(Positions),
        help="of rows in the pruned prompt (default: reindex; keep for models with M-RoPE and for dart)",
    )
    amount.add_argument("--score-layer", choices=get_args(ScoreLayer), help="stage-2 attention (default: own)")
    amount.add_argument("--epsilon", type=float, help="in the repulsion potential (default: 1e-6)")
    amount.add_argument("--selector-weights", metavar="FILE", help="of a stage before the LLM that is trained: .safetensors")
    result = parser.add_argument_group("result")
    result.add_argument("--output", "-o", help="bundle folder (default: MODEL-bBUDGET here)")
    result.add_argument("--dtype", help="float32, float16 or bfloat16, or fp32, fp16, bf16 (default: the checkpoint's)")
    result.add_argument("--quantize", choices=QUANTIZATIONS, help="smaller, faster weights for CPU; verify reports the loss")
    result.add_argument(
        "--weights", choices=("copy", "link"), default="copy", help="link: instant, weights stay where they are"
    )
    fits = "default: what fits, at most"
    result.add_argument("--max-prompt-tokens", type=int, help=f"text tokens of a prompt ({fits} {DEFAULT_PROMPT_TOKENS})")
    result.add_argument("--max-new-tokens", type=int, help=f"tokens of an answer ({fits} {DEFAULT_NEW_TOKENS})")
    result.add_argument(
        "--max-visual-tokens",
        type=int,
        metavar="V",
        help="visual tokens of a prompt before pruning, all images (default: one largest image that fits)",
    )
    result.add_argument("--force", action="store_true", help="replace an existing bundle")
    return parser


def _said(names: list[str]) -> str:
    return ", ".join(names).replace("%", "%%")  # argparse formats its help


class _ListMethods(argparse.Action):
    """Prints and ends, as --version does."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from sts_export.pruning.choosing import list_methods

        print(list_methods())
        parser.exit()


def _commands() -> str:
    lines = summaries()
    width = max(map(len, lines))
    return "".join(f"  {name:<{width}}  {line}\n" for name, line in lines.items())


def _version() -> str:
    from importlib.metadata import version

    return version("sts-export")


def action(args: argparse.Namespace) -> None:
    from sts_export.bundle.description import adapter_note, ignored_settings, large_selection, summary
    from sts_export.exporting.exporter import ExportRequest, export

    request = ExportRequest(
        model=args.model,
        output=args.output,
        budget=args.budget,
        keep=asked_keep(args),
        method=args.method,
        stage1=args.stage1,
        stage2=args.stage2,
        prune_layer=args.prune_layer,
        choices={
            name: getattr(args, name)
            for name in ("anchor", "positions", "score_layer", "epsilon")
            if getattr(args, name) is not None
        },
        dtype=args.dtype,
        quantize=args.quantize,
        weights=args.weights,
        selector_weights=args.selector_weights,
        max_prompt_tokens=args.max_prompt_tokens,
        max_new_tokens=args.max_new_tokens,
        max_visual_tokens=args.max_visual_tokens,
        force=args.force,
    )
    with byte_bar("weights") as progress:
        bundle = export(request, progress, say)
    print(f"{bundle.folder}: {summary(bundle.manifest)}")
    if merged := adapter_note(bundle.manifest):
        say(merged)
    if pruning_warning := large_selection(bundle.manifest):
        say(pruning_warning)
    if settings_warning := ignored_settings(bundle):
        say(settings_warning)
    if bundle.manifest.dtype == "bfloat16":
        say("note: ONNX Runtime on CPU cannot run bfloat16; for that export with --dtype float32")
