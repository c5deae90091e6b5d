"""Training scenes of the demo world as conversations in LLaVA's JSON format.

    python -m scripts.demo_training.conversations FOLDER --pictures N [--per-kind K] [--first SEED]

Writes FOLDER/conversations.json and FOLDER/images/*.png: one entry a question.  Scenes are those of TRAIN_SEEDS, never
held-out ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sts_export.demo.drawing import render
from sts_export.demo.questions import ask
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
        for seed in tqdm(TRAIN_SEEDS[first : first + pictures], desc="pictures", disable=None):
            scene = sample_scene(seed)
            name = f"{seed:07}.png"
            render(scene).save(new / "images" / name)
            for number, question in enumerate(dict.fromkeys(ask(scene, np.random.default_rng([seed, 2]), per_kind))):
                turns = [("human", f"<image>\n{question.text}"), ("gpt", question.answer)]
                conversation = [{"from": role, "value": text} for role, text in turns]
                entries.append({"id": f"{seed:07}-{number}", "image": name, "conversations": conversation})
        replace_json(new / "conversations.json", entries)


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
