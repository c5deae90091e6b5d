"""Train LearnPruner's selector for a model: `python -m scripts.train_learnpruner MODEL --data FOLDER -o FILE.safetensors`.

The model is frozen; what is trained is the network of stage 1 `learned` (docs/methods/learnpruner.md, "Training").
The file is what `sts-export --method learnpruner --selector-weights FILE.safetensors` reads.

A training that was stopped, even by kill -9, goes on where its state file (FILE.state.safetensors) says with the same command.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sts_export.adapters.opening import open_model
from sts_export.cli.endings import run_command
from sts_export.dtypes import DTYPES, dtype_named
from sts_export.errors import OutputError, RequestError
from sts_export.files import replace_file
from sts_export.hub import locate_model
from sts_export.pruning.choosing import config_for_budget

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.learnpruner.training import Progress, Settings
    from sts_export.reference import ReferenceModel

LOG_EVERY = 50  # steps


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 the training failed, 2 the request was wrong, 130 interrupted, 143 and 129 ended by signals."""
    args = make_parser().parse_args(argv)
    return run_command("train_learnpruner", lambda: run(args), "the same command goes on from the last state")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train_learnpruner", description="Train LearnPruner's selector for a model.")
    parser.add_argument("model", help="alias, hub id or checkpoint folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with one .json in LLaVA's format, or that file")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.safetensors")
    parser.add_argument("--force", action="store_true", help="replace the file")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--budget", default="64", help="train for the K / N of this budget (default: 64)")
    rate.add_argument("--target-rate", type=float, metavar="SHARE", help="share of visual tokens to keep, instead")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, default=1.0, help="how often each picture is seen (default: 1)")
    length.add_argument("--steps", type=int, help="of the optimizer, instead")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N entries of the file")
    parser.add_argument("--batch", type=int, default=8, help="pictures a step; gradients are accumulated (default: 8)")
    parser.add_argument("--answers", type=int, default=16, help="at most so many about a picture each time (default: 16)")
    parser.add_argument("--max-rows", type=int, default=2048, help="rows of a sequence, visual tokens included (default: 2048)")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate of AdamW (default: 1e-3)")
    parser.add_argument("--rate-weight", type=float, default=20.0, help="of the squared difference of keep rates (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the frozen model (default: float32)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--cache", type=int, default=2048, metavar="MIB", help="memory for features (default: 2048)")
    parser.add_argument("--save-every", type=int, default=20, metavar="STEPS", help="how often the state is kept (default: 20)")
    parser.add_argument("--threads", type=int)
    return parser


def run(args: argparse.Namespace) -> None:
    """Train, and write the file."""
    _check(args)
    from scripts.learnpruner.conversations import read_data

    data = read_data(args.data, args.limit)
    if data.without_image:
        print(f"{data.without_image} entries without a picture are left out", file=sys.stderr)
    checkpoint = open_model(locate_model(args.model))

    import torch
    from safetensors.torch import save
    from transformers.utils.logging import disable_progress_bar

    from scripts.learnpruner.device import check_device
    from scripts.learnpruner.pictures import Pictures
    from scripts.learnpruner.scorer import weights
    from scripts.learnpruner.sequences import grouped
    from scripts.learnpruner.training import Settings, forget, train
    from sts_export.reference import ReferenceModel

    check_device(args.device)
    disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    groups = grouped(data.conversations)
    if not groups:
        raise RequestError(f"{args.data} has no answer after a conversation's last picture; give some")
    settings = Settings(
        seed=args.seed,
        steps=args.steps or math.ceil(args.epochs * len(groups) / args.batch),
        batch=args.batch,
        rate=args.rate,
        weight=args.rate_weight,
        answers=args.answers,
        most_rows=args.max_rows,
    )
    print(f"{len(groups)} pictures, {settings.steps} steps of {settings.batch}", file=sys.stderr)
    model = ReferenceModel.open(
        checkpoint.folder,
        getattr(torch, dtype_named(args.dtype)),
        adapter=None if checkpoint.adapter is None else checkpoint.adapter.folder,
        processor=checkpoint.processor_folder,
    )
    model.model.to(args.device)
    identity = {
        **asdict(settings),
        "model": hashlib.sha256("\n".join(sorted(checkpoint.shards.values())).encode()).hexdigest(),
        "data": data.digest,
        "limit": args.limit,
        "dtype": args.dtype,
        "target rate": args.target_rate if args.target_rate is not None else f"budget {args.budget}",
    }
    state = args.output.with_name(f"{args.output.stem}.state.safetensors")
    with torch.device(args.device), _Bar(settings) as report:
        scorer = train(
            model,
            groups,
            Pictures(model, args.cache << 20),
            _target(args, model),
            settings,
            state=state,
            identity=identity,
            save_every=args.save_every,
            report=report,
        )
    replace_file(args.output, save(weights(scorer)))
    forget(state)
    print(f"{args.output} is ready for --selector-weights", file=sys.stderr)


def _check(args: argparse.Namespace) -> None:
    """Raises RequestError or OutputError before anything is loaded."""
    counts = ("steps", "limit", "batch", "answers", "max_rows", "save_every", "threads")
    for name in counts:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise RequestError(f"--{name.replace('_', '-')} must be at least 1")
    for name in ("epochs", "rate"):
        if not 0 < getattr(args, name) < math.inf:
            raise RequestError(f"--{name} must be a positive number")
    if args.target_rate is not None and not 0 < args.target_rate <= 1:
        raise RequestError("--target-rate must be in (0, 1]")
    if args.output.suffix != ".safetensors":
        raise OutputError(f"{args.output} must end with .safetensors; choose another --output")
    if args.output.exists() and not args.force:
        raise OutputError(f"{args.output} exists; choose another --output or replace it with --force")
    if not args.output.parent.is_dir():
        raise OutputError(f"{args.output.parent} is no folder; make it, or choose another --output")


def _target(args: argparse.Namespace, model: ReferenceModel) -> Callable[[int], float]:
    """Number of a picture's visual tokens -> share of them to keep."""
    if args.target_rate is not None:
        return lambda _: float(args.target_rate)
    largest = model.num_visual_tokens
    config = config_for_budget(
        args.budget, num_visual_tokens=largest, num_layers=model.num_layers, method="learnpruner", gives=model.gives
    )
    return lambda count: config.keeps(min(count, largest))[0] / count


class _Bar:
    """Steps on a terminal, with means of the last steps; a line every LOG_EVERY steps."""

    def __init__(self, settings: Settings) -> None:
        from tqdm import tqdm

        self._steps = settings.steps
        self._bar = tqdm(total=settings.steps, desc="training", unit="step", disable=None)
        self._seen: deque[Progress] = deque(maxlen=LOG_EVERY)

    def __enter__(self) -> Callable[[Progress], None]:
        return self._update

    def _update(self, now: Progress) -> None:
        self._seen.append(now)
        said = {
            "loss": f"{sum(each.answers for each in self._seen) / len(self._seen):.3f}",
            "kept": f"{sum(each.rate for each in self._seen) / len(self._seen):.1%}",
        }
        if not self._bar.n and now.step > 1:
            self._bar.update(now.step - 1)
            self._bar.unpause()
        self._bar.update(now.step - self._bar.n)
        self._bar.set_postfix(said)
        if now.step % LOG_EVERY == 0 or now.step == self._steps:
            self._bar.write(f"step {now.step}: loss {said['loss']}, {said['kept']} of visual tokens kept", file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        self._bar.close()


if __name__ == "__main__":
    sys.exit(main())
