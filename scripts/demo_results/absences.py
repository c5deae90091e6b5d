"""Why pruned answers to "Is there a ...?" say yes where there is none: `python -m scripts.demo_results.absences`.

The PyTorch reference alone.  Of the presence questions about the first pictures those are taken that are answered "no" with all
tokens and "yes" with STS at 64; then the first decoder layer is given other tokens, and nothing is pruned inside the decoder.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from scripts.demo_training.labels import PATCHES, nearest_owner
from sts_export.demo import MODEL_DIR
from sts_export.demo.drawing import draw
from sts_export.demo.held_out import held_out
from sts_export.demo.world import HELD_OUT_SEEDS, sample_scene
from sts_export.pruning.choosing import config_for_counts
from sts_export.reference import ReferenceModel, ReferenceResult, generate

PICTURES = 150
KEEP = (96, 32)
LAYERS = (12, 6)  # of the decoder, and before stage 2
MOST_TOKENS = 8


@dataclass
class Counts:
    """asked: questions; cases: that pruning alone gets wrong; yes: of these, by what the decoder is given.

    shares: of background among the patches of a picture, and among those that stage 1 keeps.
    """

    asked: int = 0
    cases: int = 0
    yes: Counter[str] = field(default_factory=Counter)
    shares: list[tuple[float, float]] = field(default_factory=list)


def count(pictures: int) -> Counts:
    """Of the presence questions about the first so many held-out pictures that are to be answered no."""
    model, counts = ReferenceModel.open(MODEL_DIR), Counts()

    def ask(text: str, image: Image.Image, keep: tuple[int, int], kept: set[int] | None = None) -> ReferenceResult:
        config = config_for_counts(PATCHES, *LAYERS, *keep)
        chosen = None if kept is None else [sorted(kept)]
        return generate(model, text, [image], config, MOST_TOKENS, kept_stage1=chosen)

    for index in range(pictures):
        (image, _), questions = held_out(index)
        for question in questions:
            if question.kind != "presence" or question.answer != "no":
                continue
            counts.asked += 1
            pruned = ask(question.text, image, KEEP)
            if said(pruned) != "yes" or said(ask(question.text, image, (PATCHES, PATCHES))) != "no":
                continue
            counts.cases += 1
            kept, background = set(pruned.kept_stage1[0]), background_of(index)
            counts.shares.append((len(background) / PATCHES, len(kept & background) / len(kept)))
            for name, tokens in given(kept, background, index).items():
                result = ask(question.text, image, (len(tokens), len(tokens)), tokens)
                counts.yes[name] += said(result) == "yes"
    return counts


def given(kept: set[int], background: set[int], seed: int) -> dict[str, set[int]]:
    """Sets of patches that the decoder is given in place of a picture."""
    random = np.random.default_rng(seed).choice(PATCHES, len(kept), replace=False)
    return {
        "what stage 1 kept": kept,
        "and all background patches": kept | background,
        "all but background patches": set(range(PATCHES)) - background,
        "as many random patches": set(random.tolist()),
    }


def main(pictures: int = PICTURES) -> None:
    counts = count(pictures)
    print(f"{counts.asked} questions with the answer no; {counts.cases} of them no with all tokens and yes with {KEEP}")
    for name, yes in counts.yes.items():
        print(f"{name}: {yes} of {counts.cases} yes")
    if counts.shares:
        whole, ours = np.mean(counts.shares, 0)
        print(f"background: {whole:.0%} of their patches, {ours:.0%} of those that stage 1 keeps")


def said(result: ReferenceResult) -> str:
    return result.text.strip()


def background_of(index: int) -> set[int]:
    """Patches of a held-out picture with no thing near, nor the word."""
    scene = sample_scene(HELD_OUT_SEEDS[index % len(HELD_OUT_SEEDS)])
    return set(np.flatnonzero(nearest_owner(scene, draw(scene).owner) < 0).tolist())


if __name__ == "__main__":
    main()
