"""Why pruned answers to "Is there a ...?" say yes where there is none: `python -m scripts.demo_results.absences`.

The PyTorch reference alone.  Of the presence questions about the first pictures those are taken that are answered "no" with all
tokens and "yes" with STS at 64; then the first decoder layer is given other tokens, and nothing is pruned inside the decoder.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

from scripts.demo_training.labels import PATCHES, patch_labels
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


def main() -> None:
    model = ReferenceModel.open(MODEL_DIR)

    def ask(text: str, image: Image.Image, keep: tuple[int, int], kept: Iterable[int] | None = None) -> ReferenceResult:
        config = config_for_counts(PATCHES, *LAYERS, *keep)
        chosen = None if kept is None else [sorted(kept)]
        return generate(model, text, [image], config, MOST_TOKENS, kept_stage1=chosen)

    asked = cases = 0
    yes: dict[str, int] = {}
    shares = []
    for index in range(PICTURES):
        (image, _), questions = held_out(index)
        for question in questions:
            if question.kind != "presence" or question.answer != "no":
                continue
            asked += 1
            if said(ask(question.text, image, (PATCHES, PATCHES))) != "no":
                continue
            pruned = ask(question.text, image, KEEP)
            if said(pruned) != "yes":
                continue
            cases += 1
            kept, background = set(pruned.kept_stage1[0]), background_of(index)
            shares.append((len(background) / PATCHES, len(kept & background) / len(kept)))
            random = np.random.default_rng(index).choice(PATCHES, len(kept), replace=False)
            for name, tokens in {
                "what stage 1 kept": kept,
                "and all background patches": kept | background,
                "all but background patches": set(range(PATCHES)) - background,
                "as many random patches": set(random.tolist()),
            }.items():
                result = ask(question.text, image, (len(tokens), len(tokens)), tokens)
                yes[name] = yes.get(name, 0) + (said(result) == "yes")
    print(f"{asked} questions with the answer no; {cases} of them no with all tokens and yes with {KEEP[0]}, {KEEP[1]}")
    for name, count in yes.items():
        print(f"{name}: {count} of {cases} yes")
    if shares:
        whole, ours = np.mean(shares, 0)
        print(f"background: {whole:.0%} of their patches, {ours:.0%} of those that stage 1 keeps")


def said(result: ReferenceResult) -> str:
    return result.text.strip()


def background_of(index: int) -> set[int]:
    """Patches with nothing near, of a held-out picture."""
    scene = sample_scene(HELD_OUT_SEEDS[index % len(HELD_OUT_SEEDS)])
    near = patch_labels(scene, draw(scene).owner)[:, 0] > 0
    return set(np.flatnonzero(~near).tolist())


if __name__ == "__main__":
    main()
