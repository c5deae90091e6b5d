"""Which tokens end an answer: those at which transformers' generate stops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from sts_export import Pipeline
from sts_export.errors import CheckpointError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.requests.end_tokens import read_end_tokens
from sts_export.testing.checkpoints import RandomLlava, write_random_llava
from tests.support.parity import Transformers, pictures

torch.set_num_threads(1)

SPEC = RandomLlava(seed=70, layers=2, vision_layers=2)
MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
TOKENS = 12
GONE: Any = ...  # a file that is not there, or a key


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llava(tmp_path_factory.mktemp("ends") / "checkpoint", SPEC)


def variant(original: Path, folder: Path, generation: Any, outer: Any, inner: Any) -> Path:
    """The checkpoint with these end tokens in generation_config.json, config.json and its text_config."""
    shutil.copytree(original, folder)
    file = folder / "generation_config.json"
    if generation is GONE:
        file.unlink()
    else:
        file.write_text(json.dumps(generation))
    config = json.loads((folder / "config.json").read_text())
    for holder, value in ((config, outer), (config["text_config"], inner)):
        holder.pop("eos_token_id", None)
        if value is not GONE:
            holder["eos_token_id"] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_end_tokens_are_those_of_transformers(original: Path, tmp_path: Path) -> None:
    """Every combination of the three places; the tokenizer's own end token is 2."""
    seen = set()
    for number, generation in enumerate([GONE, {}, {"eos_token_id": None}, {"eos_token_id": 9}, {"eos_token_id": [9, 11, 9]}]):
        for outer in (GONE, None, 5, [5, 6]):
            for inner in (GONE, None, 7, [8, 7]):
                folder = variant(original, tmp_path / f"{number}{outer}{inner}", generation, outer, inner)
                theirs = LlavaForConditionalGeneration.from_pretrained(folder).generation_config.eos_token_id
                ids = [] if theirs is None else theirs if isinstance(theirs, list) else [theirs]
                assert read_end_tokens(folder) == tuple(dict.fromkeys(ids)), (generation, outer, inner)
                seen.add(read_end_tokens(folder))
                shutil.rmtree(folder)
    assert seen == {(), (5,), (5, 6), (7,), (8, 7), (9,), (9, 11)}


@pytest.mark.parametrize("place", ["generation", "outer", "inner", "nowhere", "generation-without"])
def test_answers_end_where_those_of_transformers_do(original: Path, tmp_path: Path, place: str) -> None:
    images = pictures(3, [(90, 70)])
    free, _ = Transformers(original, SPEC).generate(MESSAGES, images, TOKENS)
    ends = [free[7], free[4]]
    assert free.index(free[4]) == 4
    generation, outer, inner = {
        "generation": ({"eos_token_id": ends}, 2, 2),
        "outer": (GONE, ends, 2),
        "inner": (GONE, GONE, ends),
        "nowhere": (GONE, GONE, GONE),
        "generation-without": ({}, ends, ends),
    }[place]
    folder = variant(original, tmp_path / "checkpoint", generation, outer, inner)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    word = Transformers(original, SPEC).tokenizer.convert_ids_to_tokens(free[2])
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "eos_token": word}))
    theirs = Transformers(folder, SPEC)
    assert theirs.tokenizer.eos_token_id == free[2]
    inputs = theirs.inputs(MESSAGES, images)
    answer = theirs.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    expected = answer[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(expected) == (TOKENS if place in ("nowhere", "generation-without") else 5)
    room: dict[str, Any] = {"budget": "100%", "max_prompt_tokens": 120, "max_new_tokens": TOKENS}
    bundle = export(ExportRequest(str(folder), tmp_path / "bundle", **room))
    ours = Pipeline(bundle.folder, threads=1).generate(MESSAGES, images, max_new_tokens=TOKENS)
    assert ours.token_ids == expected


def test_without_any_file_there_are_none(tmp_path: Path) -> None:
    assert read_end_tokens(tmp_path) == ()


@pytest.mark.parametrize("value", ["</s>", -1, True, [1.5], [3, None], {"id": 2}], ids=repr)
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_what_is_no_token_id(tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / name).write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(CheckpointError) as caught:
        read_end_tokens(tmp_path)
    message = str(caught.value)
    assert "eos_token_id" in message and name in message and "\n" not in message


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_end_tokens(tmp_path)
