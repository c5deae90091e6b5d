"""Aliases, hub ids and revisions; which files are fetched, and what is refused before any weight is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from sts_export.errors import CheckpointError, StsExportError
from sts_export.families import aliases
from sts_export.hub import locate_model
from tests.hub.fake_hub import COMMIT, FakeHub
from tests.hub.helpers import (
    FIRST,
    INDEX,
    MODEL,
    SECOND,
    SHARDS,
    SMALL,
    TEMPLATE,
    assert_whole,
    content,
    failure,
    locate,
)

# Names


def test_aliases() -> None:
    assert aliases() == {
        "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
        "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
        "llava-next-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava-next-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
        "llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
        "llava-next-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
        "llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
        "qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
        "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    }


def test_an_alias_is_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    hub.repo = "Qwen/Qwen2.5-VL-3B-Instruct"
    folder = locate(hub, tmp_path, "qwen2.5-vl-3b")
    assert folder == tmp_path / "models--Qwen--Qwen2.5-VL-3B-Instruct" / "snapshots" / COMMIT
    assert_whole(hub, folder)


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("llava-1.5-7", "llava-1.5-7b"),
        ("LLaVA-1.5-13B", "llava-1.5-13b"),
        ("lava-next-7b", "llava-next-7b"),
        ("qwen-2.5-vl-7b", "qwen2.5-vl-7b"),
        ("dem", "demo"),
        ("llava-1.5-7@main", "llava-1.5-7b"),
    ],
)
def test_a_misspelt_alias_is_answered_with_the_nearest(typed: str, near: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"unknown model .*: give a folder or a hub id such as org/name; did you mean "
    ) as error:
        locate_model(typed)
    assert str(error.value).split("did you mean ")[1].startswith(near)


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(
        CheckpointError, match="unknown model 'gpt': give a folder, a hub id such as org/name, or one of demo, "
    ):
        locate_model("gpt")


def test_a_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "llava-1.5-7b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate_model("org/name") == Path("org/name")
    assert locate_model("llava-1.5-7b") == Path("llava-1.5-7b")


# Revisions


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/7", COMMIT])
def test_a_revision(hub: FakeHub, tmp_path: Path, offline: Callable[[], None], revision: str) -> None:
    hub.revisions.add(revision)
    folder = locate(hub, tmp_path, f"{MODEL}@{revision}")
    assert_whole(hub, folder)
    offline()
    assert locate(hub, tmp_path, f"{MODEL}@{revision}") == folder
    with pytest.raises(CheckpointError, match="org/name is not in the local cache"):  # main was never downloaded
        locate(hub, tmp_path)


def test_an_alias_with_a_revision(hub: FakeHub, tmp_path: Path) -> None:
    hub.repo = aliases()["llava-1.5-7b"]
    assert "llava-hf/llava-1.5-7b-hf has no revision 'v9'" in failure(hub, tmp_path, CheckpointError, "llava-1.5-7b@v9")


@pytest.mark.parametrize("revision", ["", "../../x", "a..b", "/etc", "two words", "-f"])
def test_what_cannot_be_a_revision(hub: FakeHub, tmp_path: Path, revision: str) -> None:
    assert "cannot be a revision of org/name" in failure(hub, tmp_path, CheckpointError, f"{MODEL}@{revision}")
    assert not hub.requests


def test_a_branch_that_moved(hub: FakeHub, tmp_path: Path) -> None:
    old = locate(hub, tmp_path)
    hub.commit = "d" * 40
    hub.files[SECOND] = content(99)
    hub.requests.clear()
    new = locate(hub, tmp_path)
    assert new != old
    assert_whole(hub, new)
    assert (len(hub.gets(FIRST)), len(hub.gets(SECOND))) == (0, 1)  # the same content is not fetched again


def test_offline_the_old_commit_stays_until_the_new_one_is_whole(
    hub: FakeHub, tmp_path: Path, offline: Callable[[], None]
) -> None:
    old = locate(hub, tmp_path)
    hub.commit = "d" * 40
    hub.files[SECOND] = content(99)
    hub.faults.stored = "down"
    failure(hub, tmp_path, StsExportError)
    offline()
    assert locate(hub, tmp_path) == old


# Which files


def test_only_what_is_needed_in_this_order(hub: FakeHub, tmp_path: Path) -> None:
    assert_whole(hub, locate(hub, tmp_path))
    assert hub.asked_for() == {*SMALL, TEMPLATE, INDEX, *SHARDS}  # among the others: consolidated.safetensors, *.bin
    first_times = list(dict.fromkeys(request.file for request in hub.requests if request.file))
    assert first_times[0] == "config.json"
    assert first_times[-2:] == [FIRST, SECOND]
    assert all(len(hub.gets(name)) == 1 for name in hub.asked_for())


def test_one_weight_file_without_index(hub: FakeHub, tmp_path: Path) -> None:
    del hub.files[INDEX]
    hub.files["model.safetensors"] = content(9)
    folder = locate(hub, tmp_path)
    assert {file.name for file in folder.iterdir()} == {*SMALL, Path(TEMPLATE).parts[0], "model.safetensors"}
    assert hub.asked_for() == {*SMALL, TEMPLATE, "model.safetensors"}


def test_a_single_file_comes_before_the_index(hub: FakeHub, tmp_path: Path, offline: Callable[[], None]) -> None:
    hub.files["model.safetensors"] = content(9)
    folder = locate(hub, tmp_path)
    assert hub.asked_for() == {*SMALL, TEMPLATE, "model.safetensors"}
    assert {file.name for file in folder.iterdir() if file.is_file()} == {*SMALL, "model.safetensors"}
    offline()
    assert locate(hub, tmp_path) == folder


def test_weights_that_config_json_names(hub: FakeHub, tmp_path: Path, offline: Callable[[], None]) -> None:
    hub.files["model.safetensors"] = content(9)
    reconfigure(hub, transformers_weights="consolidated.safetensors")
    folder = locate(hub, tmp_path)
    assert hub.asked_for() == {*SMALL, TEMPLATE, "consolidated.safetensors"}
    offline()
    assert locate(hub, tmp_path) == folder


ADAPTER = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": content(7)}


def test_an_adapter_alone(hub: FakeHub, tmp_path: Path, offline: Callable[[], None]) -> None:
    """Its tokenizer comes with it, a config.json beside it does not: transformers takes the base that the adapter names."""
    hub.files = {name: value for name, value in hub.files.items() if name not in (INDEX, *SHARDS)} | ADAPTER
    folder = locate(hub, tmp_path)
    assert hub.asked_for() == {*SMALL, TEMPLATE, *ADAPTER} - {"config.json"}
    offline()
    assert locate(hub, tmp_path) == folder
    (folder / "adapter_model.safetensors").unlink()
    assert "1 of 1 weight files missing, first: adapter_model.safetensors" in failure(hub, tmp_path, CheckpointError)


def test_an_adapter_beside_a_whole_model(hub: FakeHub, tmp_path: Path) -> None:
    hub.files |= ADAPTER
    message = failure(hub, tmp_path, CheckpointError)
    assert f"holds both an adapter (adapter_config.json) and a whole model ({INDEX}): download the one you mean" in message
    assert not hub.asked_for()


def test_an_adapter_without_safetensors(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {"adapter_config.json": b"{}", "adapter_model.bin": b"pickle"}
    assert "has adapter_config.json but no adapter_model.safetensors" in failure(hub, tmp_path, CheckpointError)


@pytest.mark.parametrize("name", ["non_lora_trainables.bin", "non_lora_state_dict.bin", "vit.safetensors"])
def test_an_adapter_that_is_not_all_that_was_trained(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.files = {**ADAPTER, name: b"weights"}
    assert f"has {name} beside its adapter" in failure(hub, tmp_path, CheckpointError)
    assert not hub.asked_for()


def test_nothing_is_fetched_twice(hub: FakeHub, tmp_path: Path) -> None:
    folder = locate(hub, tmp_path)
    hub.requests.clear()
    assert locate(hub, tmp_path) == folder
    assert [request.kind for request in hub.requests] == ["info"]


def test_what_huggingface_hub_downloaded_is_used_and_the_other_way_round(hub: FakeHub, tmp_path: Path) -> None:
    huggingface_hub.hf_hub_download(MODEL, "config.json", cache_dir=tmp_path, endpoint=hub.endpoint)
    hub.requests.clear()
    folder = locate(hub, tmp_path)
    assert "config.json" not in hub.asked_for()
    for name in (*SMALL, *SHARDS):
        found = huggingface_hub.try_to_load_from_cache(MODEL, name, cache_dir=tmp_path)
        assert found == str(folder / name)


def test_a_file_cut_short_in_the_cache_is_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    folder = locate(hub, tmp_path)
    os.truncate(folder / FIRST, 1000)
    hub.requests.clear()
    assert_whole(hub, locate(hub, tmp_path))
    assert hub.asked_for() == {FIRST}


def test_the_token_goes_to_the_hub_and_not_to_the_storage_host(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    locate(hub, tmp_path)
    assert {request.authorized for request in hub.requests if request.kind != "stored"} == {True}
    assert {request.authorized for request in hub.requests if request.kind == "stored"} == {False}


# Refused before any weight is downloaded


def reconfigure(hub: FakeHub, **changes: Any) -> None:
    hub.files["config.json"] = json.dumps(json.loads(hub.files["config.json"]) | changes).encode()


def test_a_quantized_model_is_refused_before_its_weights(hub: FakeHub, tmp_path: Path) -> None:
    reconfigure(hub, quantization_config={"quant_method": "awq", "bits": 4})
    assert "org/name is quantized with AWQ" in failure(hub, tmp_path, CheckpointError)
    assert hub.asked_for() == {"config.json"}


def test_a_model_with_another_head_is_refused_before_its_weights(hub: FakeHub, tmp_path: Path) -> None:
    reconfigure(hub, architectures=["LlavaForSequenceClassification"])
    assert "the model is a LlavaForSequenceClassification" in failure(hub, tmp_path, CheckpointError)
    assert hub.asked_for() == {"config.json"}


def test_an_unsupported_architecture(hub: FakeHub, tmp_path: Path) -> None:
    reconfigure(hub, model_type="florence9")
    assert "unsupported architecture 'florence9'" in failure(hub, tmp_path, CheckpointError)
    assert hub.asked_for() == {"config.json"}


def test_no_config(hub: FakeHub, tmp_path: Path) -> None:
    del hub.files["config.json"]
    assert "org/name has no config.json" in failure(hub, tmp_path, CheckpointError)
    assert not hub.asked_for()


@pytest.mark.parametrize(
    ("pickle", "expected"), [(True, "has pickle weights only"), (False, "has no model.safetensors and no")]
)
def test_no_safetensors(hub: FakeHub, tmp_path: Path, pickle: bool, expected: str) -> None:
    for name in [INDEX, *SHARDS] + ([] if pickle else ["pytorch_model.bin", "training_args.bin"]):
        del hub.files[name]
    assert expected in failure(hub, tmp_path, CheckpointError)
    assert hub.asked_for() == {"config.json"}


def test_a_shard_that_the_repository_lacks(hub: FakeHub, tmp_path: Path) -> None:
    del hub.files[SECOND]
    message = failure(hub, tmp_path, CheckpointError)
    assert f"lacks 1 of 2 weight files that its index names (first: {SECOND})" in message
    assert not hub.gets(FIRST)


@pytest.mark.parametrize("name", ["../../x.safetensors", "original/model.safetensors", "pytorch_model.bin"])
def test_an_index_that_names_something_else(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.files[INDEX] = json.dumps({"weight_map": {"a": name}}).encode()
    assert f"names {name!r}, which is no safetensors file" in failure(hub, tmp_path, CheckpointError)
    assert not hub.gets(name)


def test_an_index_without_map(hub: FakeHub, tmp_path: Path) -> None:
    hub.files[INDEX] = b"{}"
    assert "has no weight_map" in failure(hub, tmp_path, CheckpointError)
