"""Random-weight LLaVA-NeXT (LLaVA 1.6) checkpoints with a Vicuna or a Mistral decoder.

Layouts as in llava.py, with one tensor more: ``image_newline`` (``model.image_newline`` in a plain state
dict). ``4.x`` is what llava-hf/llava-v1.6-vicuna-7b-hf and llava-hf/llava-v1.6-mistral-7b-hf have.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import (
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    MistralConfig,
)

from sts_export.testing.checkpoints.clip_llama import ClipLlama, decoder_settings, save_model, vision_config
from sts_export.testing.checkpoints.files import old_processor_files, old_rope, read_json, write_json
from sts_export.testing.checkpoints.llava import CHAT_TEMPLATE as VICUNA_CHAT_TEMPLATE
from sts_export.testing.checkpoints.tokenizers import IMAGE_TOKEN, llama_tokenizer

Decoder = Literal["vicuna", "mistral"]

# chat_template.json of the mistral checkpoint; early revisions wrote <\s> for </s>. It has no generation prompt: an answer
# follows [/INST] at once.
MISTRAL_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{# Render all text next #}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s> '}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
CHAT_TEMPLATES: dict[Decoder, str] = {"vicuna": VICUNA_CHAT_TEMPLATE, "mistral": MISTRAL_CHAT_TEMPLATE}


@dataclass(frozen=True)
class RandomLlavaNext(ClipLlama):
    """A LLaVA-NeXT architecture and its seed.

    Args:
        grid_pinpoints: (height, width) that pictures may be scaled to; None: the public ones with tiles of ``image_size``.
    """

    decoder: Decoder = "vicuna"
    grid_pinpoints: tuple[tuple[int, int], ...] | None = None

    @property
    def image_grid_pinpoints(self) -> list[list[int]]:
        """In the order of the public checkpoints, which decides ties."""
        if self.grid_pinpoints is not None:
            return [list(pinpoint) for pinpoint in self.grid_pinpoints]
        s = self.image_size
        return [[s, 2 * s], [2 * s, s], [2 * s, 2 * s], [3 * s, s], [s, 3 * s]]

    @property
    def chat_template(self) -> str:
        return CHAT_TEMPLATES[self.decoder]


def write_random_llava_next(folder: str | Path, spec: RandomLlavaNext | None = None) -> Path:
    """Write the checkpoint with tokenizer and processor; the same spec always gives the same weights."""
    spec = RandomLlavaNext() if spec is None else spec
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    save_model(LlavaNextForConditionalGeneration(_config(spec)), spec, path)
    _processor(spec).save_pretrained(path)
    if spec.layout == "4.x":
        _write_old_json(path)
    return path


def _config(spec: RandomLlavaNext) -> LlavaNextConfig:
    text: LlamaConfig | MistralConfig
    if spec.decoder == "vicuna":
        text = LlamaConfig(**decoder_settings(spec), attention_bias=spec.attention_bias, mlp_bias=spec.mlp_bias)
    elif spec.attention_bias or spec.mlp_bias:
        raise ValueError("a Mistral decoder has no biases")
    else:
        text = MistralConfig(**decoder_settings(spec), sliding_window=None)
    return LlavaNextConfig(
        vision_config=vision_config(spec),
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=spec.image_grid_pinpoints,
        image_seq_length=spec.tile_tokens,
        vision_feature_layer=spec.vision_feature_layer,
        tie_word_embeddings=spec.tied_embeddings,
    )


def _processor(spec: RandomLlavaNext) -> LlavaNextProcessor:
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": spec.image_size},
        crop_size={"height": spec.image_size, "width": spec.image_size},
        image_grid_pinpoints=spec.image_grid_pinpoints,
    )
    return LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=llama_tokenizer(spec.vocab_size),
        patch_size=spec.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=spec.chat_template,
    )


def _write_old_json(path: Path) -> None:
    """config.json, preprocessor, processor, tokenizer and chat template files as 4.x releases wrote them."""
    config = read_json(path / "config.json")
    config.update(torch_dtype=config.pop("dtype"), transformers_version="4.39.0.dev0", ignore_index=-100)
    config.update(use_image_newline_parameter=True, vocab_size=config["text_config"]["vocab_size"])
    old_rope(config["text_config"])
    write_json(path / "config.json", config)
    old_processor_files(path, "LlavaNextProcessor")
    images = read_json(path / "preprocessor_config.json")
    images.update(image_processor_type="LlavaNextImageProcessor", aspect_ratio_setting="anyres")
    write_json(path / "preprocessor_config.json", images)
    tokenizer = read_json(path / "tokenizer_config.json")
    write_json(path / "tokenizer_config.json", {**tokenizer, "tokenizer_class": "PreTrainedTokenizerFast"})
