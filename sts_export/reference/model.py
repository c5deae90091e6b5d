"""A checkpoint as transformers loads it, taken apart where pruning has to come between; one subclass per family."""

from __future__ import annotations

import importlib
import json
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from sts_export.errors import CheckpointError, ImageError, PromptError
from sts_export.reference.prompt import ImageInput, Messages, Prompt, VisualFeatures, normalized, text_messages
from sts_export.reference.tower_layers import LayeredTower
from sts_export.reference.weights import Source

FAMILIES = "sts_export.reference.families"


def families() -> list[str]:
    """Every ``model_type`` that has a reference: a file of that name, imported when such a checkpoint is opened."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(FAMILIES).__path__))


class ReferenceModel(ABC):
    """transformers' own model and processors of one family.

    Attributes:
        model: the loaded ``*ForConditionalGeneration``, eval, without gradients.
        processor: has ``tokenizer`` and ``image_processor`` (the PIL form).
        num_visual_tokens: N of the largest image.
        num_layers: T.
        image_token: id that stands for an image's rows.
        eos_tokens: ids that end a text.
        gives: what the tower gives to stage 1 beside its features, by name.
    """

    decoders: ClassVar[tuple[str, ...]]
    towers: ClassVar[tuple[str, ...]]
    gives: ClassVar[frozenset[str]]
    num_visual_tokens: int

    def __init__(self, model: Any, processor: Any) -> None:
        config = model.config
        text, vision = config.text_config, config.vision_config
        if text.model_type not in self.decoders or vision.model_type not in self.towers:
            raise CheckpointError(
                f"the reference of {config.model_type} knows {'/'.join(self.towers)} with {'/'.join(self.decoders)}, "
                f"not {vision.model_type} with {text.model_type}: use another checkpoint"
            )
        self.model = model
        self.processor = processor
        self.num_layers: int = text.num_hidden_layers
        self.image_token: int = config.image_token_id
        eos = model.generation_config.eos_token_id
        self.eos_tokens: frozenset[int] = frozenset([eos] if isinstance(eos, int) else eos or [])
        # Where attention is limited to a window, hidden keys would depend on what was pruned: only shorter texts are run.
        self.sliding_window: int | None = getattr(text, "sliding_window", None)

    @staticmethod
    def open(
        checkpoint_dir: str | Path,
        dtype: torch.dtype = torch.float32,
        *,
        attention: str = "sdpa",
        adapter: str | Path | None = None,
        processor: str | Path | None = None,
    ) -> ReferenceModel:
        """Load a local checkpoint folder of any supported family.

        Args:
            checkpoint_dir: config.json, safetensors and processor files.
            dtype: of all weights and activations.
            attention: transformers' attention implementation, ``sdpa`` or ``eager``.
            adapter: folder of a LoRA adapter to merge; None: the checkpoint folder, if one lies there.
            processor: folder of tokenizer and image processor; None: the checkpoint folder.

        Raises:
            CheckpointError: a weight is missing or has another shape, or the architecture is another one.
        """
        folder = str(checkpoint_dir)
        try:
            model_type = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("model_type")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: config.json cannot be read ({error}): give a checkpoint folder") from None
        if model_type not in families():
            raise CheckpointError(f"{folder}: model_type {model_type!r} has no reference: use one of {', '.join(families())}")
        if adapter is None and (Path(folder) / "adapter_config.json").is_file():
            adapter = folder
        source = Source(folder, str(processor or folder), Path(adapter) if adapter is not None else None)
        family: type[ReferenceModel] = importlib.import_module(f"{FAMILIES}.{model_type}").REFERENCE
        return family.load(source, dtype, attention)

    # The prompt

    def prepare(self, prompt: str | Messages, images: Sequence[Image.Image] = (), *, chat: bool = True) -> Prompt:
        """Text or a whole chat, with its images, as the checkpoint's own template, tokenizer and image processor see them.

        Args:
            prompt: what the user says (all images come before it), or a list of messages with one ``{"type": "image"}``
                part per image, or with ``chat=False`` the finished text with the image token where each image belongs.
            images: in the order of their places.
            chat: apply the chat template to a text.

        Raises:
            PromptError: the prompt does not have one place per image, or the template refuses the messages.
            ImageError: the image processor refuses a picture.
        """
        text = prompt if isinstance(prompt, str) else ""
        if not isinstance(prompt, str) or chat:
            messages = text_messages(prompt, len(images)) if isinstance(prompt, str) else normalized(prompt)
            try:
                text = self.render(messages)
            except TemplateError as error:
                raise PromptError(f"the checkpoint's chat template refuses the messages: {error}") from None
        tokenizer = self.processor.tokenizer
        has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        ids = tokenizer(text, add_special_tokens=not has_bos)["input_ids"]
        try:
            inputs = [self.process(image) for image in images]
        except ValueError as error:  # Qwen's processor refuses very long, narrow pictures
            raise ImageError(f"the checkpoint's image processor refuses the picture: {error}") from None
        return self.expand(ids, inputs)

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The checkpoint's chat template, up to where the answer begins."""
        if not messages:
            raise PromptError("an empty chat: give at least one message")
        text: str = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    def expand(self, input_ids: Tensor | Sequence[int], images: Sequence[ImageInput] = ()) -> Prompt:
        """A :class:`Prompt` from ids with one image token per image, or already as many as the images have rows.

        Raises:
            PromptError: another number of image tokens, or no text after the last image.
        """
        ids = [int(token) for token in torch.as_tensor(input_ids).flatten()]
        places = [index for index, token in enumerate(ids) if token == self.image_token]
        if places and not images:
            raise PromptError("the prompt has a place for an image but no image was given: give one or remove it")
        rows = [len(image.layout) for image in images]
        if len(places) not in (len(images), sum(rows)):
            raise PromptError(f"the prompt has {len(places)} places for images but {len(images)} were given: make them equal")
        if images and places[-1] == len(ids) - 1:
            raise PromptError("the prompt ends with an image: put text after it")
        if len(places) == len(images):
            counts = iter(rows)
            ids = [token for old in ids for token in [old] * (next(counts) if old == self.image_token else 1)]
            places = [index for index, token in enumerate(ids) if token == self.image_token]
        starts = [places[sum(rows[:index])] for index in range(len(rows))]
        for start, count in zip(starts, rows, strict=True):
            if set(ids[start : start + count]) != {self.image_token}:
                raise PromptError("the image tokens are not in runs as long as their images: write one per image")
        return Prompt(tuple(ids), tuple(images), tuple(starts))

    # What differs between families

    @classmethod
    @abstractmethod
    def load(cls, source: Source, dtype: torch.dtype, attention: str) -> ReferenceModel:
        """Load the source; see :meth:`open`."""

    @abstractmethod
    def process(self, image: Image.Image) -> ImageInput:
        """The family's image processor, and where the image's tokens go."""

    @abstractmethod
    def vision(self, image: ImageInput) -> VisualFeatures:
        """What stage 1 looks at: the tower's patch features, or the merger's output."""

    @abstractmethod
    def layered_tower(self) -> LayeredTower:
        """The tower, to be looked at layer by layer."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """[K, C] -> [K, D]: from the space of stage 1 to the decoder's."""

    @abstractmethod
    def newline(self) -> Tensor:
        """[D]: the embedding of a ``NEWLINE`` row."""

    @abstractmethod
    def positions(self, prompt: Prompt, rows: Tensor, *, original: bool) -> tuple[Tensor, int]:
        """Positions after stage 1.

        Args:
            prompt: the unpruned prompt.
            rows: [S] int64, its rows that stage 1 leaves, ascending.
            original: every row keeps its position in the unpruned prompt.

        Returns:
            [axes, S] int64 (one axis, or three for M-RoPE), and the position of the first new token on all axes.
        """

    @abstractmethod
    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [1, S, head_dim] for hidden [1, S, D] at positions [axes, S]."""

    @abstractmethod
    def rotate(self, query: Tensor, key: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rotary embedding applied as the decoder's layers do: [1, H, S, head_dim], [1, H_kv, S, head_dim]."""

    # What does not

    @torch.no_grad()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """[S] -> [S, D]: token embeddings."""
        rows: Tensor = self.model.get_input_embeddings()(torch.tensor(list(ids), dtype=torch.int64))
        return rows

    @property
    def decoder(self) -> Any:
        """transformers' text model: layers, norm, rotary_emb."""
        return self.model.model.language_model

    @torch.no_grad()
    def head(self, hidden: Tensor) -> Tensor:
        """[1, S, D] -> [vocab] float32: logits of the last position."""
        logits: Tensor = self.model.lm_head(self.decoder.norm(hidden[:, -1]))[0].float()
        return logits
