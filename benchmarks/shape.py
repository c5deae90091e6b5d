"""What the benchmarks measure on: a random float32 LLaVA-1.5 shape of 0.36 B parameters (16 decoder layers x 1024,
ViT 8 x 512, 576 visual tokens), its checkpoint, their options and the commit that is measured.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from typing import Any

PROMPT = "Describe the picture in detail."


VISION_WIDTH = 512
_DIMENSIONS: dict[str, Any] = {
    "image_size": 336,
    "vision_layers": 8,
    "vision_width": VISION_WIDTH,
    "vision_heads": 8,
    "vision_mlp": 2048,
    "layers": 16,
    "width": 1024,
    "heads": 16,
    "kv_heads": 16,
    "head_dim": 64,
    "mlp": 4096,
    "vocab_size": 32064,
    "max_positions": 4096,
}


def write_checkpoint(folder: Path) -> None:
    """The 0.36 B shape with random weights (tests/checkpoints)."""
    from sts_export.testing.checkpoints import RandomLlava, write_random_llava

    write_random_llava(folder, RandomLlava(**_DIMENSIONS))


def write_speaking_checkpoint(folder: Path) -> None:
    """The same with the few tokens that its tokenizer has words for, so that answers are text that can be compared."""
    from sts_export.testing.checkpoints import RandomLlava, write_random_llava

    write_random_llava(folder, RandomLlava(**{**_DIMENSIONS, "vocab_size": RandomLlava().vocab_size}))


def write_tiled_checkpoint(folder: Path) -> None:
    """The same as LLaVA-NeXT: a picture is up to five crops, 2880 visual tokens."""
    from sts_export.testing.checkpoints import RandomLlavaNext, write_random_llava_next

    write_random_llava_next(folder, RandomLlavaNext(**_DIMENSIONS))


def checkpoint_folder(given: Path | None, scratch: Path) -> Path:
    """The checkpoint in ``given``, or else in ``scratch``; written there unless it is one already."""
    folder = given or scratch / "checkpoint"
    if not (folder / "config.json").exists():
        write_checkpoint(folder)
    return folder


def commit() -> str:
    """The commit that is measured."""
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()


def common_options(description: str, *, repeats: int) -> argparse.ArgumentParser:
    """The options of every benchmark; the first line of ``description`` is shown."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="made once and kept here (default: a temporary folder, 1.4 GB)")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--json", type=Path, help="write figures and versions here")
    return parser


def generation_options(description: str) -> argparse.ArgumentParser:
    """Those, and what the benchmarks that generate text take."""
    parser = common_options(description, repeats=5)
    parser.add_argument("--budget", default="64")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    return parser
