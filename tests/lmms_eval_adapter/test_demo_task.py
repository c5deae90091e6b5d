"""The demo world as a task: its questions and pictures are the held-out ones."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from scripts.lmms_eval.demo_task import TASK, questions_of, write_task


def test_questions_and_pictures_are_the_held_out_ones(tmp_path: Path) -> None:
    count = write_task(tmp_path / "task", range(3, 5))
    lines = [json.loads(line) for line in (tmp_path / "task" / "questions.jsonl").read_text().splitlines()]
    expected = [asked for scene in (3, 4) for asked in questions_of(scene)]
    assert count == len(lines) == len(expected) > 4
    functions = load(tmp_path / "task" / "functions.py")
    for line, asked in zip(lines, expected, strict=True):
        assert (line["kind"], line["question"], line["answer"]) == (asked.kind, asked.text, asked.answer)
        pictures = functions.doc_to_visual(line)
        assert len(pictures) == len(asked.images)
        for picture, image in zip(pictures, asked.images, strict=True):
            assert np.array_equal(np.asarray(picture), np.asarray(image.convert("RGB")))
        assert functions.process_results(line, [f" {asked.answer}\n"]) == {"right": 1.0}
        assert functions.process_results(line, [f"{asked.answer}x"]) == {"right": 0.0}


def test_the_task_names_its_files(tmp_path: Path) -> None:
    write_task(tmp_path / "task", range(1))
    text = (tmp_path / "task" / f"{TASK}.yaml").read_text()
    assert f"task: {TASK}\n" in text
    assert f'test: "{tmp_path.resolve()}/task/questions.jsonl"\n' in text


def load(file: Path) -> Any:
    """As lmms-eval loads what stands behind !function."""
    spec = importlib.util.spec_from_file_location("functions", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
