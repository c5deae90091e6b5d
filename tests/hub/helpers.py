"""A hub in this process with one small repository on it, and what the tests ask of it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from sts_export.demo import MODEL_DIR
from sts_export.errors import StsExportError
from sts_export.hub import locate_model
from tests.hub.fake_hub import FakeHub

MODEL = "org/name"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
FIRST, SECOND = SHARDS
INDEX = "model.safetensors.index.json"
SMALL = sorted(file.name for file in MODEL_DIR.iterdir() if file.suffix in (".json", ".jinja"))
TEMPLATE = "additional_chat_templates/tool_use.jinja"
# What a repository also holds and an export does not need.
OTHERS = (
    "README.md",
    "consolidated.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "training_args.bin",
    "original/model.safetensors",
    "onnx/model.onnx",
    "model.Q4.gguf",
    "original/additional_chat_templates/tool_use.jinja",
)

SIZE, CUT = 16 << 20, 13 << 20


def content(seed: int, size: int = 300_000) -> bytes:
    return random.Random(seed).randbytes(size)


def repository() -> dict[str, bytes]:
    """A checkpoint of two shards among other files."""
    files = {name: (MODEL_DIR / name).read_bytes() for name in SMALL}
    files |= {name: content(at) for at, name in enumerate((*SHARDS, *OTHERS))}
    files[TEMPLATE] = b"{{ messages }} tools"
    files[INDEX] = json.dumps({"metadata": {}, "weight_map": {"a": FIRST, "b": SECOND, "c": FIRST}}).encode()
    return files


def locate(hub: FakeHub, cache: Path, model: str = MODEL) -> Path:
    return locate_model(model, cache_dir=cache, endpoint=hub.endpoint)


def failure(hub: FakeHub, cache: Path, kind: type[StsExportError], model: str = MODEL) -> str:
    """The message of a download that must fail, in one line."""
    with pytest.raises(StsExportError) as caught:
        locate(hub, cache, model)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def process(hub: FakeHub, cache: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The command line as a user runs it."""
    command = [sys.executable, "-m", "sts_export.cli", *(arguments or ("--model", MODEL, "--budget", "64"))]
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"} | environment
    return subprocess.Popen(
        command, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cache.parent
    )


def blob(hub: FakeHub, cache: Path, file: str, suffix: str = "") -> Path:
    return cache / "models--org--name" / "blobs" / (hub.etag(file) + suffix)


def assert_whole(hub: FakeHub, folder: Path) -> None:
    """Everything that is needed, nothing that is not, byte by byte."""
    there = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    assert there.keys() == {*SMALL, TEMPLATE, INDEX, *SHARDS}
    for name, file in there.items():
        assert file.read_bytes() == hub.files[name]
    assert not list(folder.parents[1].rglob("*.incomplete"))
