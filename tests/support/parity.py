"""What the parity tests share: checkpoints written once, bundles exported once, and transformers' own answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)
from transformers import CLIPImageProcessorPil as ClipImages

from sts_export import Pipeline
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.reference import ReferenceModel
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_image,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)

Spec = RandomLlava | RandomLlavaNext | RandomQwen25VL
Messages = list[dict[str, Any]]
NEVER = 10**6  # an end token that no model has
TOLERANCE = 1e-3  # of relative_error, in float32 on any processor

_WRITERS: dict[type, Callable[..., Path]] = {
    RandomLlava: write_random_llava,
    RandomLlavaNext: write_random_llava_next,
    RandomQwen25VL: write_random_qwen2_5_vl,
}


@dataclass(frozen=True)
class Case:
    """A checkpoint and how it is exported; ``export`` holds fields of ExportRequest, as pairs."""

    name: str
    spec: Spec
    export: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return self.name


class Workshop:
    """Writes checkpoints, exports bundles and opens them, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._references: dict[Spec, ReferenceModel] = {}
        self._pipelines: dict[Case, Pipeline] = {}

    def checkpoint(self, spec: Spec) -> Path:
        folder = self.folder / f"{type(spec).__name__}-{abs(hash(spec))}"
        return folder if folder.is_dir() else _WRITERS[type(spec)](folder, spec)

    def reference(self, spec: Spec) -> ReferenceModel:
        if spec not in self._references:
            self._references[spec] = ReferenceModel.open(self.checkpoint(spec))
        return self._references[spec]

    def pipeline(self, case: Case) -> Pipeline:
        if case not in self._pipelines:
            output = self.folder / f"bundle-{len(self._pipelines)}"
            request = ExportRequest(str(self.checkpoint(case.spec)), output=output, **dict(case.export))
            self._pipelines[case] = Pipeline(export(request).folder, threads=1)
        return self._pipelines[case]


def pictures(seed: int, sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
    """One random picture of each (width, height)."""
    return [random_image(100 * seed + index, size) for index, size in enumerate(sizes)]


def relative_error(actual: NDArray[np.float32], expected: torch.Tensor) -> float:
    """Largest difference in a step over the largest logit of that step, over all steps."""
    theirs = expected.numpy()
    assert actual.shape == theirs.shape and np.isfinite(actual).all()
    return float((np.abs(actual - theirs).max(axis=1) / np.abs(theirs).max(axis=1)).max())


class Transformers:
    """transformers' own model, processors and generate, with no code of this project between."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        self._qwen = isinstance(spec, RandomQwen25VL)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._images = Qwen2VLImageProcessorPil.from_pretrained(folder) if self._qwen else None
        if isinstance(spec, RandomQwen25VL):
            self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        elif isinstance(spec, RandomLlavaNext):
            self.model = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
            images = LlavaNextImageProcessorPil.from_pretrained(folder)
            self._processor = LlavaNextProcessor.from_pretrained(folder, image_processor=images)
        else:
            self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
            images = ClipImages.from_pretrained(folder)
            self._processor = LlavaProcessor.from_pretrained(folder, image_processor=images)

    def inputs(self, messages: Messages, images: Sequence[Image.Image]) -> dict[str, Any]:
        if not self._qwen:
            text = self._processor.apply_chat_template(messages, add_generation_prompt=True)
            return dict(self._processor(images=list(images) or None, text=text, return_tensors="pt"))
        # Qwen2_5_VLProcessor needs torchvision for videos: its work for images, from its parts.
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        pixels: dict[str, Any] = {}
        if images:
            assert self._images is not None
            pixels = dict(self._images(images=list(images), return_tensors="pt"))
        pieces = text.split("<|image_pad|>")
        counts = [int(grid.prod()) // 4 for grid in pixels.get("image_grid_thw", [])]
        text = pieces[0] + "".join("<|image_pad|>" * n + piece for n, piece in zip(counts, pieces[1:], strict=True))
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        kinds = (ids == self.model.config.image_token_id).int()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **pixels}

    def generate(self, messages: Messages, images: Sequence[Image.Image], tokens: int) -> tuple[list[int], torch.Tensor]:
        """Greedy token ids, and the logits [tokens, vocab] that chose them."""
        inputs = self.inputs(messages, images)
        out = self.model.generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=NEVER,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), torch.cat(out.logits).float()
