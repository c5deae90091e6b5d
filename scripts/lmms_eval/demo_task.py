"""Held-out questions of the demo world as a task of lmms-eval: `python -m scripts.lmms_eval.demo_task FOLDER`.

Makes a folder for `--include_path`: the task `sts_export_demo`, its questions and its pictures.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sts_export.demo.held_out import held_out

TASK = "sts_export_demo"
MAX_NEW_TOKENS = 16
_YAML = """task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: generate_until
doc_to_visual: !function functions.doc_to_visual
doc_to_text: question
doc_to_target: answer
process_results: !function functions.process_results
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  temperature: 0
  do_sample: false
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1.0
"""


@dataclass(frozen=True)
class Asked:
    images: tuple[Image.Image, ...]
    kind: str
    text: str
    answer: str


def questions_of(scene: int) -> list[Asked]:
    images, questions = held_out(scene)
    return [Asked(images[: question.pictures], question.kind, question.text, question.answer) for question in questions]


def write_task(folder: Path, scenes: Iterable[int]) -> int:
    """Write the task into a folder that is not there yet.

    Returns:
        How many questions it has.
    """
    folder = folder.resolve()
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for scene in scenes:
        for number, asked in enumerate(questions_of(scene)):
            files = [folder / "pictures" / f"{scene}-{number}-{place}.png" for place in range(len(asked.images))]
            for image, file in zip(asked.images, files, strict=True):
                image.save(file)
            pictures = [str(file) for file in files]
            question = {"kind": asked.kind, "question": asked.text, "answer": asked.answer, "pictures": pictures}
            lines.append(json.dumps(question))
    questions = folder / "questions.jsonl"
    questions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = _YAML.format(task=TASK, questions=json.dumps(str(questions)), max_new_tokens=MAX_NEW_TOKENS)
    (folder / f"{TASK}.yaml").write_text(text, encoding="utf-8")
    shutil.copy(Path(__file__).with_name("functions.py"), folder)
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="made by this script")
    parser.add_argument("--scenes", type=int, default=50, help="number of held-out scenes (default: 50)")
    parser.add_argument("--first", type=int, default=0, help="first of them (default: 0)")
    args = parser.parse_args()
    count = write_task(args.folder, range(args.first, args.first + args.scenes))
    print(f"{args.folder}: {count} questions; --include_path {args.folder} --tasks {TASK}")


if __name__ == "__main__":
    main()
