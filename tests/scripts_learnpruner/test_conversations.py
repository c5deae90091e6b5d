"""LLaVA's JSON format, and one line for whatever is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.learnpruner.conversations import IMAGE, Turn, read_data
from scripts.learnpruner.sequences import grouped
from sts_export.errors import RequestError

HUMAN, GPT = {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a cat"}


def written(folder: Path, entries: Any) -> Path:
    (folder / "images" / "sub").mkdir(parents=True)
    for name in ("images/sub/a.png", "b.png"):
        (folder / name).write_bytes(b"")
    (folder / "all.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return folder


def entry(*turns: dict[str, str], image: Any = "b.png") -> dict[str, Any]:
    return {"id": "1", "image": image, "conversations": list(turns)}


def test_what_is_read(tmp_path: Path) -> None:
    more = {"from": "human", "value": "And <image> with\n<image>?"}
    text_only = {"id": "2", "conversations": [{"from": "human", "value": "Hello"}, GPT]}
    entries = [entry(HUMAN, GPT), text_only, entry(more, GPT, HUMAN, GPT, image=["sub/a.png", "b.png", "b.png"])]
    data = read_data(written(tmp_path, entries))
    one, three = data.conversations
    assert data.without_image == 1
    assert one.images == (tmp_path / "b.png",) and one.answers == (1,)
    assert one.turns == (Turn("user", (IMAGE, "What is it?")), Turn("assistant", ("a cat",)))
    assert three.images == (tmp_path / "images/sub/a.png", tmp_path / "b.png", tmp_path / "b.png")
    assert three.turns[0].parts == ("And", IMAGE, "with", IMAGE, "?") and three.answers == (3,)
    assert read_data(tmp_path / "all.json", limit=1).conversations == (one,)


def test_what_shares_a_sequence(tmp_path: Path) -> None:
    before = {"from": "human", "value": "Look:\n<image>\nWhat is it?"}
    again = {"from": "human", "value": "Really?"}
    entries = [entry(HUMAN, GPT), entry(before, GPT), entry(HUMAN, GPT, again, GPT), entry(HUMAN, GPT, image="sub/a.png")]
    groups = grouped(read_data(written(tmp_path, entries)).conversations)
    assert [group.answers for group in groups] == [((0, 1), (1, 1), (1, 3)), ((0, 1),), ((0, 1),)]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("[{]", "all.json is no JSON"),
        ({}, "holds no list"),
        ([], "no conversation about a picture"),
        ([entry(HUMAN, GPT), 3], "all.json, entry 2: not an object"),
        ([{"id": "1", "image": "b.png"}], 'entry 1: no list "conversations"'),
        ([entry(HUMAN, {"from": "gpt"})], 'entry 1: turn 2 has no text "value"'),
        ([entry(HUMAN, {"from": "bard", "value": ""})], "turn 2 is from 'bard' instead of human, gpt, system"),
        ([entry(HUMAN, GPT, GPT)], "turns do not alternate"),
        ([entry(HUMAN)], "turns do not alternate"),
        ([entry(HUMAN, GPT, image=["b.png", "b.png"])], "1 <image> in the text for 2 pictures"),
        ([entry(HUMAN, GPT, image=7)], '"image" is neither a file name nor a list of them'),
        ([entry(HUMAN, GPT, image="c.png")], "entry 1: no picture c.png in"),
        ([entry({"from": "human", "value": "?"}, {"from": "gpt", "value": "<image>"})], "<image> in an answer"),
    ],
)
def test_what_is_refused(tmp_path: Path, entries: Any, said: str) -> None:
    with pytest.raises(RequestError) as raised:
        read_data(written(tmp_path, entries))
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"must hold one .json file of conversations, it has none"):
        read_data(tmp_path)
    with pytest.raises(RequestError, match="cannot be read"):
        read_data(tmp_path / "absent.json")
