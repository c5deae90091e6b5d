"""Train the demo model and write it to sts_export/demo/model.

    python -m scripts.train_demo

Three stages, each of which starts from the file the one before left in --work:

1. sparse:  the vision tower alone learns dense labels of every patch, on the third of the patches that holds something
            and its surroundings (cheap: no decoder, few tokens).
2. decoder: the decoder learns to answer from few patches (twice the steps in the same time). Two losses help it: patches
            are drawn to the embeddings of their words, and four layers are told where to look (`attention_loss`).
3. joint:   everything together on all 576 visual tokens.

The checkpoint that is shipped was trained for about 80 minutes on two busy cores while these stages were being found:
sparse 1000 steps; 1750 steps on few patches, the two helping losses being added on the way; then about 2700 joint steps, the
last 1250 of them with the questions and the attention guide as they are now, at most 1e-3 and a cosine down. Its accuracy is
in sts_export/demo/model/README.md. The stages below are the cleaned-up form of that history; as one run they have not been
measured, and they will not give the same bytes.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from scripts.demo_training.card import Answerer, table, write_card, write_pictures
from scripts.demo_training.data import CHANNELS, GEOMETRY, GRID, Pictures, ask_many, make_pictures, rows_forever
from scripts.demo_training.model import PREFIX, Heads, build_model, save, train_tokenizer
from scripts.demo_training.packing import answer_logits, attention_loss, encode, make_guides, pack, vision_features
from sts_export.demo import MODEL_DIR
from sts_export.demo.held_out import held_out
from sts_export.demo.questions import Question, ask
from sts_export.demo.world import ALPHABET, COLORS, SHAPES

SPARSE = 176  # patches per picture that the vision tower sees in the first stages
FEW = 80  # of them, those that the decoder sees
DENSE_SHARE = 0.2  # of the dense losses, once the decoder learns too
WORD_SHARE = 0.1  # of the loss that ties patches to words
LOOK_SHARE = 0.2  # of the loss that guides attention to what a question is about


@dataclass(frozen=True)
class Stage:
    """steps of `batch` pictures, at most `rate`, warmed up over `warmup` steps, then a cosine down to a twentieth.

    The vision tower learns at `vision_share` of the rate.
    """

    name: str
    steps: int
    batch: int
    rate: float
    warmup: int = 100
    vision_share: float = 1.0


STAGES = {
    "sparse": Stage("sparse", steps=1000, batch=16, rate=1.2e-3),
    "decoder": Stage("decoder", steps=2000, batch=4, rate=1.2e-3, vision_share=0.25),
    "joint": Stage("joint", steps=2500, batch=4, rate=1e-3, vision_share=0.5, warmup=15),
}


@dataclass
class Trainee:
    """Everything a stage trains, and what it trains on."""

    model: LlavaForConditionalGeneration
    heads: Heads
    tokenizer: PreTrainedTokenizerFast
    train: Pictures
    held_out: Pictures


def dense_loss(trainee: Trainee, features: Tensor, labels: Tensor, rows: np.ndarray) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of all dense labels plus presence from the CLS token; patches that hold something weigh more."""
    dense, presence = trainee.heads(features)
    weight = torch.where(is_busy(labels) > 0, 1.0, 0.15)
    weight = weight / weight.sum()
    total = torch.zeros(())
    right = {}
    for channel, (name, logits) in enumerate(zip(CHANNELS, dense, strict=False)):
        label = labels[..., channel]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none")
        total = total + (loss * weight.flatten()).sum()
        chosen = label > 0
        right[name] = (logits.argmax(-1) == label)[chosen].float().mean().item()
    off = (dense[-1] - labels[..., len(CHANNELS) : len(CHANNELS) + GEOMETRY] / 50).square().mean(-1)
    total = total + 2 * (off * weight).sum()
    right["geometry"] = (off * weight).sum().item()
    truth = trainee.train.presence(rows)
    total = total + nn.functional.binary_cross_entropy_with_logits(presence, truth) * 3
    right["cls"] = ((presence > 0) == (truth > 0.5))[truth > 0.5].float().mean().item()
    return total, right


def is_busy(labels: Tensor) -> Tensor:
    """Patches that hold something [b, 576] float32, from dense labels."""
    return (labels[..., :4].sum(-1) > 0).float()


def sparse_features(trainee: Trainee, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Vision features [b, 1 + SPARSE, width] and labels [b, SPARSE, ·] of all busy patches, neighbours and some others."""
    pixels, labels = trainee.train.batch(rows)
    busy = is_busy(labels)
    wide = nn.functional.max_pool2d(busy.view(-1, 1, GRID, GRID), 3, 1, 1).flatten(1)
    keep = (busy + wide + torch.rand(busy.shape) * 1.2).topk(SPARSE).indices.sort().values
    return vision_features(trainee.model, pixels, keep), torch.take_along_dim(labels, keep[..., None], 1)


def sparse_step(trainee: Trainee, rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
    features, labels = sparse_features(trainee, rows)
    return dense_loss(trainee, features, labels, rows)


def decoder_step(trainee: Trainee, rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
    features, labels = sparse_features(trainee, rows)
    extra, right = dense_loss(trainee, features, labels, rows)
    busy = is_busy(labels)
    keep = (busy + labels[..., 4] + torch.rand(busy.shape) * 1.2).topk(FEW).indices.sort().values
    visual = torch.take_along_dim(features[:, 1:], keep[..., None], 1)
    labels = torch.take_along_dim(labels, keep[..., None], 1)
    return answer_loss(trainee, visual, labels, rows, rng, extra, right)


def joint_step(trainee: Trainee, rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
    pixels, labels = trainee.train.batch(rows)
    features = vision_features(trainee.model, pixels)
    extra, right = dense_loss(trainee, features, labels, rows)
    return answer_loss(trainee, features[:, 1:], labels, rows, rng, extra, right)


def word_loss(trainee: Trainee, visual: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Projected patches should resemble the embeddings of their words ("star", "red", "K").

    It is to the decoder what contrastive pre-training is to a real LLaVA: with it, finding what a question names is
    little more than a dot product, and the decoder learns to look within minutes.
    """
    projected = nn.functional.normalize(trainee.model.model.multi_modal_projector(visual), dim=-1)
    embedding = trainee.model.model.language_model.embed_tokens.weight
    total, right = torch.zeros(()), []
    for channel, words in word_lists():
        ids = [encode(trainee.tokenizer, word)[-1] for word in words]
        label = labels[..., channel]
        rows = label > 0
        logits = 12 * projected[rows] @ nn.functional.normalize(embedding[ids], dim=-1).T
        total = total + nn.functional.cross_entropy(logits, label[rows] - 1)
        right.append((logits.argmax(-1) == label[rows] - 1).float().mean().item())
    return total, sum(right) / len(right)


def word_tokens(trainee: Trainee) -> dict[int, tuple[int, int]]:
    """Tokens that name a shape or a colour -> (label channel, class)."""
    return {
        encode(trainee.tokenizer, word)[-1]: (channel, number + 1)
        for channel, words in word_lists()[:2]
        for number, word in enumerate(words)
    }


def word_lists() -> list[tuple[int, list[str]]]:
    """The words of each dense label channel, in the order of its classes."""
    shapes = [f" {shape}" for shape in SHAPES]
    halves = [(len(CHANNELS) + GEOMETRY, [" top", " bottom"]), (len(CHANNELS) + GEOMETRY + 1, [" left", " right"])]
    return [(0, shapes), (1, [f" {color}" for color in COLORS]), (2, list(ALPHABET)), *halves]


def answer_loss(
    trainee: Trainee,
    visual: Tensor,
    labels: Tensor,
    rows: np.ndarray,
    rng: np.random.Generator,
    extra: Tensor,
    right: dict[str, float],
) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of the answers to many questions about every picture, plus the dense losses as a regularizer."""
    asked = [ask_many(trainee.train.scene(int(row)), rng) for row in rows]
    packed = pack(trainee.tokenizer, asked)
    logits, targets, _ = answer_logits(trainee.model, trainee.tokenizer, visual, packed)
    answers = nn.functional.cross_entropy(logits, targets)
    right |= {"answers": answers.item(), "token": (logits.argmax(-1) == targets).float().mean().item()}
    words, right["words"] = word_loss(trainee, visual, labels)
    before = len(encode(trainee.tokenizer, PREFIX)) - 1
    looks, right["looks"] = attention_loss(packed, make_guides(asked, packed, labels, word_tokens(trainee)), before)
    return answers + DENSE_SHARE * extra + WORD_SHARE * words + LOOK_SHARE * looks, right


Step = Callable[[Trainee, np.ndarray, np.random.Generator], tuple[Tensor, dict[str, float]]]
STEPS: dict[str, Step] = {"sparse": sparse_step, "decoder": decoder_step, "joint": joint_step}


def parameter_groups(trainee: Trainee, stage: Stage) -> list[dict[str, Any]]:
    """What a stage trains, with its rate: once the decoder learns, the tower follows more slowly."""
    model = trainee.model.model
    tower = model.vision_tower
    vision = [tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:-1], trainee.heads]
    text = [model.multi_modal_projector, model.language_model, trainee.model.lm_head]
    parts = [(vision, stage.rate * stage.vision_share)]
    if stage.name != "sparse":
        parts.append((text, stage.rate))
    groups = []
    for modules, rate in parts:
        parameters = [p for module in modules for p in module.parameters()]
        groups.append({"params": [p for p in parameters if p.ndim > 1], "peak": rate, "weight_decay": 0.02})
        groups.append({"params": [p for p in parameters if p.ndim <= 1], "peak": rate, "weight_decay": 0.0})
    return groups


def run(trainee: Trainee, stage: Stage, work: Path, seed: int) -> None:
    """Train one stage; logs every 50 steps, saves every 250."""
    optimizer = torch.optim.AdamW(parameter_groups(trainee, stage), lr=stage.rate, betas=(0.9, 0.98))
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    rng = np.random.default_rng([seed, len(stage.name)])
    seen: defaultdict[str, list[float]] = defaultdict(list)
    start = time.time()
    batches = rows_forever(len(trainee.train.seeds), stage.batch, seed + len(stage.name))
    for step, rows in zip(range(stage.steps), batches, strict=False):
        down = 0.525 + 0.475 * math.cos(math.pi * step / stage.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, (step + 1) / stage.warmup) * down
        loss, right = STEPS[stage.name](trainee, rows, rng)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in {"loss": loss.item(), **right}.items():
            if not math.isnan(value):
                seen[name].append(value)
        if (step + 1) % 50 == 0:
            means = " ".join(f"{name} {np.mean(values):.3f}" for name, values in seen.items())
            print(f"{stage.name} {step + 1}/{stage.steps} {time.time() - start:.0f}s {means}", flush=True)
            seen.clear()
        if (step + 1) % 100 == 0 or step + 1 == stage.steps:
            store(trainee, work / f"{stage.name}.pt")
            if stage.name != "sparse":
                print(report(count_right(graded(trainee, pictures=60))), flush=True)


@torch.no_grad()
def graded(trainee: Trainee, pictures: int, keep: int = 576, seed: int = 0) -> list[tuple[int, Question, bool]]:
    """Every question about the first held-out pictures, and whether the greedy answer is right.

    An answer is right when every token (and the end) is the most likely one after the true ones before it, which is
    the same as greedy decoding giving it.

    Args:
        keep: how many of the 576 visual tokens to keep, chosen at random.
    """
    grades: list[tuple[int, Question, bool]] = []
    generator = torch.Generator().manual_seed(seed)
    data = trainee.held_out
    for first in range(0, min(pictures, len(data.seeds)), 10):
        rows = np.arange(first, min(first + 10, len(data.seeds)))
        pixels, _ = data.batch(rows)
        features = vision_features(trainee.model, pixels)[:, 1:]
        if keep < 576:
            order = torch.rand(features.shape[:2], generator=generator)
            features = torch.take_along_dim(features, order.topk(keep).indices.sort().values[..., None], 1)
        asked = [ask(data.scene(int(row)), np.random.default_rng([data.seeds[row], 1])) for row in rows]
        logits, targets, index = answer_logits(trainee.model, trainee.tokenizer, features, pack(trainee.tokenizer, asked))
        wrong = set(index[logits.argmax(-1) != targets].tolist())
        for row, some in enumerate(asked):
            grades += [(first + row, q, row * 1000 + number not in wrong) for number, q in enumerate(some)]
    return grades


def count_right(grades: list[tuple[int, Question, bool]]) -> dict[str, tuple[int, int]]:
    """(right, asked) per kind."""
    score: dict[str, tuple[int, int]] = {}
    for _, question, right in grades:
        old = score.get(question.kind, (0, 0))
        score[question.kind] = (old[0] + right, old[1] + 1)
    return score


def report(score: dict[str, tuple[int, int]]) -> str:
    """One line: share of right answers overall and per kind."""
    right, asked = map(sum, zip(*score.values(), strict=True))
    kinds: Iterable[str] = (f"{kind} {r / n:.3f}" for kind, (r, n) in score.items())
    return f"    held out, n = {asked}: all {right / asked:.3f} " + " ".join(kinds)


def store(trainee: Trainee, file: Path) -> None:
    torch.save({"model": trainee.model.state_dict(), "heads": trainee.heads.state_dict()}, file)


def restore(trainee: Trainee, file: Path) -> None:
    state = torch.load(file)
    trainee.model.load_state_dict(state["model"])
    trainee.heads.load_state_dict(state["heads"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="folder for pictures and stage results")
    parser.add_argument("--pictures", type=int, default=16000, help="number of training pictures")
    parser.add_argument("--held-out", type=int, default=300, help="number of held-out pictures")
    parser.add_argument("--stages", default=",".join(STAGES), help="stages to run, comma separated; earlier results are read")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    args = parser.parse_args()

    torch.set_flush_denormal(True)
    torch.set_num_threads(2)
    tokenizer = train_tokenizer()
    trainee = Trainee(
        model=build_model(tokenizer, args.seed),
        heads=Heads(),
        tokenizer=tokenizer,
        train=make_pictures(args.work, "train", args.pictures),
        held_out=make_pictures(args.work, "held_out", args.held_out),
    )
    print(f"{sum(p.numel() for p in trainee.model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    names = [name for name in args.stages.split(",") if name]
    order = list(STAGES)
    place = order.index(names[0]) if names else len(order)
    if place > 0:
        restore(trainee, args.work / f"{order[place - 1]}.pt")
    for name in names:
        run(trainee, STAGES[name], args.work, args.seed)
    save(trainee.model, tokenizer, args.out)
    finish(trainee, args.out, args.held_out)


def finish(trainee: Trainee, out: Path, pictures: int) -> None:
    """Measure the saved checkpoint and write card and sample pictures."""
    grades = graded(trainee, pictures)
    thinned = {keep: count_right(graded(trainee, pictures, keep)) for keep in (64, 32)}
    results = table(count_right(grades), thinned)
    print(results, flush=True)
    write_card(out, trainee.model, pictures, results)
    write_pictures(out.parent / "pictures", grades)
    # The same through image processor, chat template and generate.
    answerer = Answerer(out)
    some = [(index, question, right) for index, question, right in grades if index < 10]
    agree = sum((answerer(held_out(i)[0], question.text) == question.answer) == right for i, question, right in some)
    print(f"generate agrees on {agree} of {len(some)} questions", flush=True)


if __name__ == "__main__":
    main()
