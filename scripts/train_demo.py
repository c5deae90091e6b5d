"""Train the demo model and write it to sts_export/demo/model.

    python -m scripts.train_demo [--work FOLDER] [--device cuda]

1. tower:     the vision tower alone learns dense labels of every patch, and global ones; then it is frozen.
2. features:  the frozen tower's features of all pictures are computed once.
3. projector: projected patches are drawn to the embeddings of their words.
4. decoder:   projector and decoder learn to answer questions about one or two pictures, on all visual tokens of grids of
              several sizes, behind texts of many lengths.  No pruned sequence is ever seen.
5. pairs:     the same, half of it about two pictures.

A run that was stopped goes on where it was.  The same seed on another processor, or with other threads, gives a model as good,
not the same bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from scripts.demo_training import alignment, tower
from scripts.demo_training.alignment import align
from scripts.demo_training.card import Answerer, table, write_card, write_pictures
from scripts.demo_training.decoder import DECODER, PAIRS, train_decoder
from scripts.demo_training.features import make_features
from scripts.demo_training.grades import count_right, graded
from scripts.demo_training.model import build_model, save, train_tokenizer
from scripts.demo_training.pictures import make_pictures
from scripts.demo_training.tower import train_tower
from scripts.learnpruner.device import check_device
from sts_export.cli.endings import run_command
from sts_export.cli.parser import Parser
from sts_export.demo import MODEL_DIR, PICTURES_DIR
from sts_export.demo.held_out import held_out
from sts_export.demo.questions import Question
from sts_export.errors import RequestError

SHIPPED_PICTURES = 6
CHECKED = 10  # held-out pictures whose questions are also answered by generate
# Batches of the tower are the largest; the last held-out picture has no next one.
LEAST = {
    "--pictures": tower.SPARSE_BATCH,
    "--held-out": 2,
    "--tower-steps": 1,
    "--projector-steps": 1,
    "--decoder-steps": 1,
    "--pairs-steps": 1,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 the training failed, 2 the request was wrong, 130 interrupted, 143 and 129 ended by signals."""
    return run_command(
        "train_demo", lambda: run(make_parser().parse_args(argv)), "the same command goes on from the last state"
    )


def make_parser() -> Parser:
    parser = Parser(prog="train_demo", description="Train the demo model.")
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="folder for pictures, features and states")
    parser.add_argument("--pictures", type=int, default=12000, help="number of training pictures")
    parser.add_argument("--held-out", type=int, default=400, help="number of held-out pictures that are graded")
    parser.add_argument("--tower-steps", type=int, default=tower.SCHEDULE.steps)
    parser.add_argument("--projector-steps", type=int, default=alignment.SCHEDULE.steps)
    parser.add_argument("--decoder-steps", type=int, default=DECODER.schedule.steps)
    parser.add_argument("--pairs-steps", type=int, default=PAIRS.schedule.steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    parser.add_argument("--out-pictures", type=Path, default=PICTURES_DIR)
    return parser


def run(args: argparse.Namespace) -> None:
    """All stages.

    Raises:
        RequestError: a number or the device is wrong.
        OSError: the file system refuses.
    """
    for name, least in LEAST.items():
        if (value := getattr(args, name[2:].replace("-", "_"))) < least:
            raise RequestError(f"{name} must be at least {least}, not {value}")
    check_device(args.device)
    torch.set_flush_denormal(True)
    with torch.device(args.device):
        _train(args)


def _train(args: argparse.Namespace) -> None:
    tokenizer = train_tokenizer()
    model = build_model(tokenizer, args.seed).to(args.device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    train = make_pictures(args.work, "train", args.pictures)
    held_out_pictures = make_pictures(args.work, "held_out", args.held_out)

    schedule = dataclasses.replace(tower.SCHEDULE, steps=args.tower_steps)
    train_tower(model, train, held_out_pictures, args.work / "tower.pt", args.seed, schedule)
    model.model.vision_tower.requires_grad_(False)
    seen = [(pictures, make_features(model, pictures, args.work)) for pictures in (train, held_out_pictures)]
    schedule = dataclasses.replace(alignment.SCHEDULE, steps=args.projector_steps)
    align(model, tokenizer, *seen[0], args.work / "projector.pt", args.seed, schedule)
    for stage, steps in ((DECODER, args.decoder_steps), (PAIRS, args.pairs_steps)):
        stage = dataclasses.replace(stage, schedule=dataclasses.replace(stage.schedule, steps=steps))
        later = [args.work / f"{PAIRS.name}.pt"] if stage.name == DECODER.name else []
        train_decoder(model, tokenizer, seen[0], seen[1], args.work / f"{stage.name}.pt", args.seed, stage, later)

    save(model.half(), tokenizer, args.out)
    model.float()  # what was rounded stays so: the shipped weights are graded
    grades = graded(model, tokenizer, *seen[1], count=args.held_out)
    results = table(count_right(grades))
    print(results, flush=True)
    write_card(args.out, model, args.held_out, len(grades), results)
    write_pictures(args.out_pictures, SHIPPED_PICTURES)
    _check(args.out, [grade for grade in grades if grade[0] < CHECKED])


def _check(folder: Path, grades: list[tuple[int, Question, bool]]) -> None:
    """The same questions through image processor, chat template and generate."""
    answerer = Answerer(folder)
    agree = 0
    for index, question, right in grades:
        pictures = held_out(index)[0][: question.pictures]
        agree += (answerer(pictures, question.text) == question.answer) == right
    print(f"generate agrees on {agree} of {len(grades)} questions", flush=True)


if __name__ == "__main__":
    sys.exit(main())
