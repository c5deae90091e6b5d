"""A LLaVA-1.5 checkpoint as transformers loads it, and the prompt as its own processor makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor

from sts_export.errors import CheckpointError, PromptError


@dataclass(frozen=True)
class Prompt:
    """Token ids on both sides of the image, and the image: [1, 3, H, W] or none (then all ids are in ``before``)."""

    before: tuple[int, ...]
    after: tuple[int, ...] = ()
    pixel_values: Tensor | None = None


class ReferenceModel:
    """transformers' LlavaForConditionalGeneration and its processor, taken apart where pruning has to come between.

    Attributes:
        model: the loaded model, eval, without gradients.
        processor: LlavaProcessor with the PIL image processor.
        num_visual_tokens: N.
        num_layers: T.
        image_token: id of ``<image>``.
        eos_tokens: ids that end a text.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        config = model.config
        if config.text_config.model_type != "llama" or config.vision_config.model_type != "clip_vision_model":
            raise CheckpointError(
                f"the reference knows a CLIP tower with a LLaMA decoder, not {config.vision_config.model_type} with "
                f"{config.text_config.model_type}: use a LLaVA-1.5 checkpoint"
            )
        if config.vision_feature_select_strategy != "default" or not isinstance(config.vision_feature_layer, int):
            raise CheckpointError(
                "the reference knows one vision feature layer without its CLS token: use a checkpoint with "
                "vision_feature_select_strategy 'default' and an integer vision_feature_layer"
            )
        self.model = model
        self.processor = processor
        self.num_visual_tokens: int = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        self.num_layers: int = config.text_config.num_hidden_layers
        self.image_token: int = config.image_token_id
        eos = model.generation_config.eos_token_id
        self.eos_tokens: frozenset[int] = frozenset([eos] if isinstance(eos, int) else eos or [])

    @classmethod
    def open(cls, checkpoint_dir: str | Path, dtype: torch.dtype = torch.float32, *, attention: str = "sdpa") -> ReferenceModel:
        """Load a local checkpoint folder.

        Args:
            checkpoint_dir: config.json, safetensors and processor files.
            dtype: of all weights and activations.
            attention: transformers' attention implementation, ``sdpa`` or ``eager``.

        Raises:
            CheckpointError: a weight is missing or has another shape, or the architecture is another one.
        """
        folder = str(checkpoint_dir)
        model, info = LlavaForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
            if info[problem]:
                example = sorted(map(str, info[problem]))[0]
                raise CheckpointError(
                    f"{folder}: {len(info[problem])} {problem.replace('_', ' ')}, for example {example}: "
                    "download or save the checkpoint again"
                )
        processor = LlavaProcessor.from_pretrained(folder, local_files_only=True)
        processor.image_processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        return cls(model.eval().requires_grad_(False), processor)

    # The prompt

    def prepare(self, text: str, images: Sequence[Image.Image] = (), *, chat: bool = True) -> Prompt:
        """Text and at most one image as the checkpoint's own chat template, tokenizer and image processor see them.

        Args:
            text: what the user says, or with ``chat=False`` the finished prompt with ``<image>`` where the image belongs.
            images: none or one.
            chat: apply the chat template.

        Raises:
            PromptError: several images, or the prompt does not have one ``<image>`` per image.
        """
        if len(images) > 1:
            raise PromptError(f"{len(images)} images: the reference takes none or one")
        if chat:
            content: list[dict[str, str]] = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        tokenizer = self.processor.tokenizer
        has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        ids = tokenizer(text, add_special_tokens=not has_bos)["input_ids"]
        pixel_values: Tensor | None = None
        if images:
            pixel_values = self.processor.image_processor(images[0], return_tensors="pt")["pixel_values"]
        return self.split(ids, pixel_values)

    def split(self, input_ids: Tensor | Sequence[int], pixel_values: Tensor | None = None) -> Prompt:
        """A :class:`Prompt` from ids in which the image is one ``<image>`` or a run of them ([S] or [1, S]).

        Raises:
            PromptError: not exactly one run with, and no ``<image>`` without, ``pixel_values``; no text after it.
        """
        ids = [int(token) for token in torch.as_tensor(input_ids).flatten()]
        places = [index for index, token in enumerate(ids) if token == self.image_token]
        if pixel_values is None:
            if places:
                raise PromptError("the prompt has <image> but no image was given: give one or remove <image>")
            return Prompt(tuple(ids))
        if not places or places[-1] - places[0] + 1 != len(places) or len(pixel_values) != 1:
            raise PromptError("the prompt needs <image> in one place, for one image")
        if len(places) not in (1, self.num_visual_tokens):
            raise PromptError(f"{len(places)} <image> tokens: write one, or {self.num_visual_tokens} for the whole image")
        if places[-1] == len(ids) - 1:
            raise PromptError("the prompt ends with the image: put text after <image>")
        return Prompt(tuple(ids[: places[0]]), tuple(ids[places[-1] + 1 :]), pixel_values)

    # The parts of the model

    @torch.no_grad()
    def vision(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Patch features and their saliency.

        Args:
            pixel_values: [1, 3, H, W].

        Returns:
            features [N, C]: hidden state of ``vision_feature_layer`` without CLS; saliency [N] float32: attention of CLS to
            the patches in the encoder layer that wrote that hidden state, mean over heads (softmax over CLS and patches).
        """
        tower = self.model.model.vision_tower
        states = tower(pixel_values.to(self.model.dtype), output_hidden_states=True).hidden_states
        index = self.model.config.vision_feature_layer % len(states)  # hidden state i is written by encoder layer i - 1
        if index == 0:
            raise CheckpointError("vision_feature_layer 0 is the embedding: no encoder layer has attended to anything yet")
        layer = tower.encoder.layers[index - 1]
        normed = layer.layer_norm1(states[index - 1][0])
        split = (-1, layer.self_attn.num_heads, layer.self_attn.head_dim)
        query = layer.self_attn.q_proj(normed[:1]).view(split).float()
        key = layer.self_attn.k_proj(normed).view(split).float()
        attention = (torch.einsum("qhd,khd->hqk", query, key) * layer.self_attn.scale).softmax(dim=-1)
        return states[index][0, 1:], attention.mean(dim=0)[0, 1:]

    @torch.no_grad()
    def project(self, features: Tensor) -> Tensor:
        """[K, C] -> [K, D]: the multi-modal projector on the kept rows only."""
        projected: Tensor = self.model.model.multi_modal_projector(features)
        return projected

    @torch.no_grad()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """[S] -> [S, D]: token embeddings."""
        rows: Tensor = self.model.get_input_embeddings()(torch.tensor(list(ids), dtype=torch.int64))
        return rows

    @property
    def decoder(self) -> Any:
        """transformers' LlamaModel: layers, norm, rotary_emb."""
        return self.model.model.language_model

    @torch.no_grad()
    def head(self, hidden: Tensor) -> Tensor:
        """[1, S, D] -> [vocab] float32: logits of the last position."""
        logits: Tensor = self.model.lm_head(self.decoder.norm(hidden[:, -1]))[0].float()
        return logits
