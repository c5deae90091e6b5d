"""Training scenes of the demo world as conversations in LLaVA's JSON format.

    python -m scripts.demo_training.conversations FOLDER --pictures N [--per-kind K] [--first SEED]

Writes FOLDER/conversations.json and FOLDER/images/*.png: one entry a question.  Scenes are those of TRAIN_SEEDS, never
held-out ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from sts_export.demo.drawing import render
from sts_export.demo.questions import ask, ask_both
from sts_export.demo.world import TRAIN_SEEDS, sample_scene
from sts_export.exporting.staging import staging
from sts_export.files import replace_json

PER_KIND = 3


def write_conversations(folder: Path, pictures: int, *, per_kind: int = PER_KIND, first: int = 0) -> None:
    """A new folder, complete or not there.

    Args:
        per_kind: at most so many questions of a kind about a picture.
        first: number of the first scene in TRAIN_SEEDS.

    Raises:
        OutputError: the folder exists or cannot be written.
    """
    entries = []
    with staging(folder) as new:
        (new / "images").mkdir()
        for index in tqdm(range(first, first + pictures), desc="pictures", disable=None):
            names: dict[int, str] = {}  # of pictures, by identity: many questions share one
            for number, (images, text, answer) in enumerate(asked := _training_questions(index, per_kind)):
                for image in images:
                    if id(image) not in names:
                        names[id(image)] = f"{index:07}-{len(names)}.png"
                        image.save(new / "images" / names[id(image)])
                turns = [("human", "<image>\n" * len(images) + text), ("gpt", answer)]
                own = [names[id(image)] for image in images]
                entries.append(
                    {
                        "id": f"{index:07}-{number}",
                        "image": own[0] if len(own) == 1 else own,
                        "conversations": [{"from": role, "value": value} for role, value in turns],
                    }
                )
            del asked  # whose pictures keep their identities until here
        replace_json(new / "conversations.json", entries)


def _training_questions(index: int, per_kind: int) -> list[tuple[tuple[Image.Image, ...], str, str]]:
    """Pictures, question and answer, of training scene number ``index``; the second picture is the next scene's."""
    seed = TRAIN_SEEDS[index]
    scenes = sample_scene(seed), sample_scene(TRAIN_SEEDS[(index + 1) % len(TRAIN_SEEDS)])
    images = render(scenes[0]), render(scenes[1])
    rng = np.random.default_rng([seed, 2])
    questions = dict.fromkeys([*ask(scenes[0], rng, per_kind), *ask_both(scenes, rng, per_kind)])
    return [(images[: question.pictures], question.text, question.answer) for question in questions]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write training scenes of the demo world in LLaVA's JSON format.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--per-kind", type=int, default=PER_KIND, help=f"questions of a kind (default: {PER_KIND})")
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    args = parser.parse_args()
    write_conversations(args.folder, args.pictures, per_kind=args.per_kind, first=args.first)


if __name__ == "__main__":
    main()
