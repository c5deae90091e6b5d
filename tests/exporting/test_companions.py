"""The bundle's tokenizer is the checkpoint's, whichever of its files transformers reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sts_export.bundle.manifest import open_bundle
from sts_export.checkpoints.checkpoint import is_companion
from sts_export.errors import BundleError
from sts_export.exporting.exporter import export
from sts_export.testing.checkpoints import random_prompt
from tests.exporting.helpers import files, request


def plain(source: Path) -> None:
    pass


def several_templates(source: Path) -> None:
    """The default one beside others, as save_pretrained writes them."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    default = (source / "chat_template.jinja").read_text()
    tokenizer.chat_template = {"default": default, "tool_use": "{{ messages }} tools", "rag": "{{ messages }} rag"}
    tokenizer.save_pretrained(source)
    assert {file.name for file in (source / "additional_chat_templates").iterdir()} == {"tool_use.jinja", "rag.jinja"}


def versioned(source: Path) -> None:
    """tokenizer.json of a release, which transformers takes instead of the plain one: here with a token more."""
    content = json.loads((source / "tokenizer.json").read_text())
    first = content["added_tokens"][0]
    content["added_tokens"].append({**first, "content": "<extra>", "id": 380})
    content["model"]["vocab"]["<extra>"] = 380
    (source / "tokenizer.5.0.json").write_text(json.dumps(content))
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["fast_tokenizer_files"] = ["tokenizer.json", "tokenizer.5.0.json"]
    (source / "tokenizer_config.json").write_text(json.dumps(config))


def as_seen(folder: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {
        "class": type(tokenizer).__name__,
        "vocabulary": tokenizer.get_vocab(),
        "templates": tokenizer.chat_template,
        "special": tokenizer.special_tokens_map,
        "ids": [tokenizer(f"{random_prompt(seed)}<extra> <image></s>")["input_ids"] for seed in range(5)],
    }


@pytest.mark.parametrize("change", [plain, several_templates, versioned])
def test_the_tokenizer_is_the_checkpoints(checkpoint: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    change(source)
    expected = as_seen(source)
    bundle = export(request(source, tmp_path / "bundle", weights="link")).folder
    assert as_seen(bundle) == expected
    assert ("<extra>" in expected["vocabulary"]) == (change is versioned)
    assert (type(expected["templates"]) is dict) == (change is several_templates)
    open_bundle(bundle, check_all=True)
    again = Path(shutil.copytree(bundle, tmp_path / "again"))
    assert files(again) == files(bundle)


def test_files_below_the_bundle_are_checked(checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    several_templates(source)
    bundle = export(request(source, tmp_path / "bundle", weights="link")).folder
    file = bundle / "additional_chat_templates" / "rag.jinja"
    file.write_text(file.read_text().upper())
    with pytest.raises(BundleError, match=r"rag\.jinja was altered"):
        open_bundle(bundle)
    file.unlink()
    with pytest.raises(BundleError, match=r"rag\.jinja is missing"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("config.json", True),
        ("tokenizer.json", True),
        ("tokenizer.4.0.json", True),
        ("tokenizer.model", True),
        ("tokenizer.model.v3", True),
        ("tekken.json", True),
        ("additional_chat_templates/tool_use.jinja", True),
        ("additional_chat_templates/deeper/tool_use.jinja", False),
        ("other/additional_chat_templates/tool_use.jinja", False),
        ("additional_chat_templates/notes.txt", False),
        ("onnx/tokenizer.json", False),
        ("onnx/tekken.json", False),
        ("model.safetensors", False),
        ("model.safetensors.index.json", False),
        ("README.md", False),
        ("training_args.bin", False),
    ],
)
def test_what_a_companion_is(name: str, expected: bool) -> None:
    assert is_companion(name) == expected
