"""Random-weight LLaVA-1.5 checkpoints.

Names of the weights on disk (``layout``), with the release that writes them:

- ``5.x``: ``language_model.model.layers.0…``, ``language_model.lm_head.weight``, ``vision_tower.encoder.layers.0…``,
  ``multi_modal_projector.linear_1…``: transformers 5.23 save_pretrained of a new model.
- ``4.x``: the same with ``vision_tower.vision_model.encoder…``: save_pretrained of 4.x, the checkpoints on the hub, and what
  5.23 writes again after loading one. Also writes config.json and the processor files as those releases did.
- ``memory-4.52``: ``model.language_model.layers…``, ``lm_head.weight``, ``model.vision_tower.vision_model.encoder…``,
  ``model.multi_modal_projector…``: a plain state dict since 4.52 (trainers write it).
- ``memory-5.x``: the same with ``model.vision_tower.encoder…``: a plain state dict of 5.23.
- ``flat``: ``5.x`` with ``language_model.layers…`` for ``language_model.model.layers…``; transformers reads it, and writes it
  again after loading it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import (
    CLIPImageProcessorPil,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from sts_export.testing.checkpoints.clip_llama import ClipLlama, Layout, decoder_settings, save_model, vision_config
from sts_export.testing.checkpoints.files import old_processor_files, old_rope, read_json, write_json
from sts_export.testing.checkpoints.tokenizers import IMAGE_TOKEN, llama_tokenizer

__all__ = ["CHAT_TEMPLATE", "Layout", "RandomLlava", "write_random_llava"]

# The template of llava-hf/llava-1.5-7b-hf.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}"
    "{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class RandomLlava(ClipLlama):
    """A LLaVA-1.5 architecture and its seed; the defaults have 36 visual tokens and grouped-query attention."""

    @property
    def num_visual_tokens(self) -> int:
        """N."""
        return self.tile_tokens


def write_random_llava(folder: str | Path, spec: RandomLlava | None = None) -> Path:
    """Write the checkpoint with tokenizer and processor; the same spec always gives the same weights."""
    spec = RandomLlava() if spec is None else spec
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    save_model(LlavaForConditionalGeneration(_config(spec)), spec, path)
    _processor(spec).save_pretrained(path)
    if spec.layout == "4.x":
        _write_old_json(path)
    return path


def _config(spec: RandomLlava) -> LlavaConfig:
    text = LlamaConfig(**decoder_settings(spec), attention_bias=spec.attention_bias, mlp_bias=spec.mlp_bias)
    return LlavaConfig(
        vision_config=vision_config(spec),
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=spec.num_visual_tokens,
        vision_feature_layer=spec.vision_feature_layer,
        tie_word_embeddings=spec.tied_embeddings,
    )


def _processor(spec: RandomLlava) -> LlavaProcessor:
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": spec.image_size}, crop_size={"height": spec.image_size, "width": spec.image_size}
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=llama_tokenizer(spec.vocab_size),
        patch_size=spec.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def _write_old_json(path: Path) -> None:
    """config.json, preprocessor, processor, tokenizer and chat template files as 4.x releases wrote them."""
    config = read_json(path / "config.json")
    config.update(torch_dtype=config.pop("dtype"), transformers_version="4.46.0", ignore_index=-100)
    old_rope(config["text_config"])
    write_json(path / "config.json", config)
    old_processor_files(path, "LlavaProcessor")
    tokenizer = read_json(path / "tokenizer_config.json")
    write_json(path / "tokenizer_config.json", {**tokenizer, "tokenizer_class": "PreTrainedTokenizerFast"})
