"""Embedding and head: whichever settings and matrices a checkpoint has, ours are those that transformers loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
)

from sts_export import Pipeline
from sts_export.checkpoints.checkpoint import image_processor_settings, open_checkpoint
from sts_export.checkpoints.safetensors_header import TensorEntry, read_header
from sts_export.errors import CheckpointError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.exporting.tied_head import resolve_head
from sts_export.exporting.weights import same_content
from sts_export.families import family_of
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)
from tests.support.parity import Spec, Transformers, pictures, relative_error

torch.set_num_threads(1)

SMALL: dict[str, Any] = {"layers": 2, "vision_layers": 2}
FAMILIES: dict[str, tuple[Spec, Callable[..., Path], Any]] = {
    "llava": (RandomLlava(seed=60, layout="memory-4.52", **SMALL), write_random_llava, LlavaForConditionalGeneration),
    "llava_next": (RandomLlavaNext(seed=61, **SMALL), write_random_llava_next, LlavaNextForConditionalGeneration),
    "qwen2_5_vl": (
        RandomQwen25VL(seed=62, fullatt_block_indexes=(1,), **SMALL),
        write_random_qwen2_5_vl,
        Qwen2_5_VLForConditionalGeneration,
    ),
}
FLAGS = [..., False, True]
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    return {name: write(folder / name, spec) for name, (spec, write, _) in FAMILIES.items()}


def variant(original: Path, folder: Path, outer: Any, inner: Any, stored: str) -> Path:
    """The checkpoint with these settings (``...``: left out) and matrices."""
    shutil.copytree(original, folder)
    config = json.loads((folder / "config.json").read_text())
    for holder, flag in ((config, outer), (config["text_config"], inner)):
        holder.pop("tie_word_embeddings", None)
        if flag is not ...:
            holder["tie_word_embeddings"] = flag
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    embedding, head = (next(name for name in tensors if name.endswith(end)) for end in (EMBEDDING, HEAD))
    if stored == "equal":
        tensors[head] = tensors[embedding].clone()
    elif stored != "different":
        del tensors[{"head": embedding, "embedding": head}[stored]]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def read(entry: TensorEntry) -> torch.Tensor:
    return load_file(entry.file)[entry.name]


@pytest.mark.parametrize("stored", ["equal", "different", "head", "embedding"])
@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_are_those_of_transformers(originals: dict[str, Path], tmp_path: Path, family: str, stored: str) -> None:
    for outer in FLAGS:
        for inner in FLAGS:
            case = (outer, inner)
            folder = variant(originals[family], tmp_path / f"{outer}-{inner}", outer, inner, stored)
            model, info = FAMILIES[family][2].from_pretrained(folder, output_loading_info=True)
            checkpoint = open_checkpoint(folder)
            ours = family_of(checkpoint.config)
            spec = ours.parse(checkpoint.config, image_processor_settings(folder)[0])
            if any(name.endswith(HEAD) for name in info["missing_keys"]):
                with pytest.raises(CheckpointError, match=r"lm_head\.weight") as caught:
                    resolve_head(checkpoint, ours, spec)
                assert "tie_word_embeddings" in str(caught.value) and "\n" not in str(caught.value)
                continue
            spec, canonical_name = resolve_head(checkpoint, ours, spec)
            stored_as = {canonical_name(name): entry for name, entry in checkpoint.tensors.items()}
            embedding = f"{ours.names.decoder}.{EMBEDDING}"
            if any(name.endswith(EMBEDDING) for name in info["missing_keys"]):
                assert embedding not in stored_as, case  # match_weights says that it is missing
                continue
            head = embedding if spec.decoder.tie_word_embeddings else f"{ours.names.head}.weight"
            assert torch.equal(read(stored_as[embedding]), model.get_input_embeddings().weight), case
            assert torch.equal(read(stored_as[head]), model.get_output_embeddings().weight), case


# outer, inner, stored -> whether one matrix serves both, and what the manifest says was left out
BUNDLES: dict[str, tuple[str, Any, Any, str, bool, int]] = {
    "llava-two": ("llava", True, True, "different", False, 0),
    "llava-head": ("llava", True, False, "head", True, 0),
    "llava-inner": ("llava", False, True, "embedding", True, 0),
    "next-two": ("llava_next", True, ..., "different", False, 0),
    "next-inner-only": ("llava_next", ..., True, "different", False, 0),
    "next-equal": ("llava_next", True, True, "equal", True, 1),
    "qwen-two": ("qwen2_5_vl", True, True, "different", False, 0),
    "qwen-head": ("qwen2_5_vl", ..., True, "head", True, 0),
}


@pytest.mark.parametrize("case", BUNDLES)
def test_bundles_answer_as_transformers(originals: dict[str, Path], tmp_path: Path, case: str) -> None:
    family, outer, inner, stored, shared, left_out = BUNDLES[case]
    folder = variant(originals[family], tmp_path / "checkpoint", outer, inner, stored)
    theirs = Transformers(folder, FAMILIES[family][0])
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    images = pictures(7, [(90, 70)])
    expected, logits = theirs.generate(messages, images, 6)
    room: dict[str, Any] = {"budget": "100%", "max_prompt_tokens": 120, "max_new_tokens": 8}
    for weights in ("link", "copy"):
        bundle = export(ExportRequest(str(folder), tmp_path / weights, weights=weights, **room))
        assert bundle.manifest.model.decoder.tie_word_embeddings == shared
        assert bundle.manifest.unused_weights.get("head equal to the embedding it is tied to", 0) == left_out
        vlm = Pipeline(bundle.folder, threads=1)
        assert vlm.generate(messages, images, max_new_tokens=6, ignore_eos=True).token_ids == expected
        assert relative_error(vlm.score(messages, images, expected), logits) < 1e-3


# Comparing contents

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contents") / "pair.safetensors"


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(values=st.lists(st.integers(-128, 128), min_size=1, max_size=6), types=st.tuples(*[st.sampled_from(list(TYPES))] * 2))
def test_equal_numbers_in_any_types(scratch: Path, values: list[int], types: tuple[str, str]) -> None:
    one, other = (torch.tensor(values).to(TYPES[kind]) for kind in types)
    for changed in range(-1, len(values)):
        if changed >= 0:
            other = torch.tensor(values).to(TYPES[types[1]])
            other[changed] += 8
        save_file({"one": one, "other": other}, scratch)
        entries = read_header(scratch)[0]
        assert same_content(entries["one"], entries["other"]) == (changed < 0)


def test_the_last_number_of_a_long_tensor_counts(scratch: Path) -> None:
    one = torch.zeros(3, (1 << 20) - 7, dtype=torch.float16)
    other = one.clone()
    other[-1, -1] = 1
    save_file({"one": one, "other": other, "same": one.clone(), "flat": one.reshape(-1).clone()}, scratch)
    entries = read_header(scratch)[0]
    assert same_content(entries["one"], entries["same"])
    assert not same_content(entries["one"], entries["other"])
    assert not same_content(entries["one"], entries["flat"])
    assert np.prod(entries["one"].shape) > 1 << 20
