"""Checkpoints, their bundles and pictures, which no test may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sts_export.exporting.exporter import ExportRequest, export
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_image,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)
from tests.cli.helpers import Work

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint/, bundle/ and picture.png."""
    folder: Path = tmp_path_factory.mktemp("origin")
    write_random_llava(folder / "checkpoint", RandomLlava(layers=2, vision_layers=2))
    export(ExportRequest(str(folder / "checkpoint"), folder / "bundle", budget="12", max_prompt_tokens=60, max_new_tokens=20))
    random_image(0).save(folder / "picture.png")
    return folder


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llava_next and qwen2_5_vl with their bundles llava_next-b and qwen2_5_vl-b, and wide.png and tall.png."""
    folder: Path = tmp_path_factory.mktemp("families")
    write_random_llava_next(folder / "llava_next", RandomLlavaNext(layers=2, vision_layers=2))
    write_random_qwen2_5_vl(folder / "qwen2_5_vl", RandomQwen25VL(layers=2))
    for name, tokens in (("llava_next", 400), ("qwen2_5_vl", 200)):
        request = ExportRequest(
            str(folder / name),
            folder / f"{name}-b",
            budget="20%",
            max_prompt_tokens=90,
            max_new_tokens=10,
            max_visual_tokens=tokens,
        )
        export(request)
    random_image(1, (300, 100)).save(folder / "wide.png")
    random_image(2, (90, 200)).save(folder / "tall.png")
    return folder


@pytest.fixture
def work(origin: Path, tmp_path: Path) -> Work:
    return Work(origin, tmp_path)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As HF_HUB_OFFLINE=1 with an empty cache; whoever asks the network fails the test."""
    import socket

    import huggingface_hub.constants

    def no_network(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"asked the network: {args}")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
