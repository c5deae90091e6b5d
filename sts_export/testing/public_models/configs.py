"""JSON files of the public checkpoints, as on the hub.

Where the config.json values come from (copies of the hub's files in public repositories):

- llava-1.5-7b, v1.6-mistral-7b, Qwen2.5-VL 7B and 3B, all preprocessor_config.json and chat templates: seen in full.
- llava-1.5-13b, v1.6-vicuna-7b: NOT SEEN themselves; derived from their sisters, which were (among them v1.6-vicuna-13b).
- generation_config.json: Qwen's was seen in a derived model; the LLaVA ones are NOT CONFIRMED.
- Number of shards: NOT CONFIRMED, except 3 for llava-1.5-7b. ``parameters``: 13.35 is computed (the hub rounds to 13B).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sts_export.testing.checkpoints.llava import CHAT_TEMPLATE
from sts_export.testing.checkpoints.llava_next import MISTRAL_CHAT_TEMPLATE
from sts_export.testing.checkpoints.qwen2_5_vl import QWEN_CHAT_TEMPLATE

Json = dict[str, Any]


@dataclass(frozen=True)
class PublicModel:
    """One checkpoint of the hub.

    Args:
        parameters: published number of parameters, in billions with two decimals.
        dtype: of every tensor, as safetensors names it.
        shards: number of files on the hub.
    """

    name: str
    parameters: float
    dtype: str
    shards: int
    config: Json
    generation: Json
    preprocessor: Json
    chat_template: str
    processor: Json = field(default_factory=dict)

    @property
    def alias(self) -> str:
        """What follows the owner's name."""
        return self.name.split("/")[1]


_CLIP = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
# What the hub's files leave out equals the defaults of LlamaConfig: 4096 wide, 32 layers, 32 heads, MLP of 11008.
_VICUNA_7B = {
    "_name_or_path": "lmsys/vicuna-7b-v1.5",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "torch_dtype": "float16",
    "vocab_size": 32064,
}
_VICUNA_13B = {
    **_VICUNA_7B,
    "_name_or_path": "lmsys/vicuna-13b-v1.5",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
    "pad_token_id": 0,
}
_MISTRAL_7B = {
    "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
    "architectures": ["MistralForCausalLM"],
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def _llava_config(text: Json) -> Json:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.36.0.dev0",
        "vision_config": _CLIP,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    }


def _llava_next_config(text: Json) -> Json:
    """No tie_word_embeddings, no pad_token_id on the top level."""
    return {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": _PINPOINTS,
        "image_token_index": 32000,
        "model_type": "llava_next",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "torch_dtype": "float16",
        "transformers_version": "4.39.0.dev0",
        "use_image_newline_parameter": True,
        "vision_config": _CLIP,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    }


def _clip_preprocessor(**more: Any) -> Json:
    return {
        "crop_size": {"height": 336, "width": 336},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": _MEAN,
        "image_std": _STD,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 336},
        **more,
    }


def _llava_processor(kind: str) -> Json:
    return {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": 14,
        "processor_class": kind,
        "vision_feature_select_strategy": "default",
    }


def _llava(name: str, parameters: float, shards: int, text: Json) -> PublicModel:
    return PublicModel(
        name=f"llava-hf/{name}",
        parameters=parameters,
        dtype="F16",
        shards=shards,
        config=_llava_config(text),
        generation={"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32001},
        preprocessor=_clip_preprocessor(image_processor_type="CLIPImageProcessor", processor_class="LlavaProcessor"),
        chat_template=CHAT_TEMPLATE,
        processor=_llava_processor("LlavaProcessor"),
    )


def _llava_next(name: str, parameters: float, shards: int, text: Json, chat_template: str) -> PublicModel:
    return PublicModel(
        name=f"llava-hf/{name}",
        parameters=parameters,
        dtype="F16",
        shards=shards,
        config=_llava_next_config(text),
        generation={"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2},
        preprocessor=_clip_preprocessor(
            aspect_ratio_setting="anyres",
            do_pad=True,
            image_grid_pinpoints=_PINPOINTS,
            image_processor_type="LlavaNextImageProcessor",
            processor_class="LlavaNextProcessor",
        ),
        chat_template=chat_template,
        processor=_llava_processor("LlavaNextProcessor"),
    )


def _qwen(name: str, parameters: float, shards: int, **sizes: Any) -> PublicModel:
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "model_type": "qwen2_5_vl",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": sizes["hidden_size"],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        **sizes,
    }
    return PublicModel(
        name=f"Qwen/{name}",
        parameters=parameters,
        dtype="BF16",
        shards=shards,
        config=config,
        generation={
            "bos_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "repetition_penalty": 1.05,
            "temperature": 1e-06,
        },
        preprocessor={
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": _MEAN,
            "image_std": _STD,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
        chat_template=QWEN_CHAT_TEMPLATE,
    )


_MODELS = (
    _llava("llava-1.5-7b-hf", 7.06, 3, _VICUNA_7B),
    _llava("llava-1.5-13b-hf", 13.35, 6, _VICUNA_13B),
    _llava_next("llava-v1.6-vicuna-7b-hf", 7.06, 3, {**_VICUNA_7B, "pad_token_id": 0}, CHAT_TEMPLATE),
    _llava_next("llava-v1.6-mistral-7b-hf", 7.57, 4, _MISTRAL_7B, MISTRAL_CHAT_TEMPLATE),
    _qwen(
        "Qwen2.5-VL-7B-Instruct",
        8.29,
        5,
        hidden_size=3584,
        intermediate_size=18944,
        max_window_layers=28,
        num_attention_heads=28,
        num_hidden_layers=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        vocab_size=152064,
    ),
    _qwen(
        "Qwen2.5-VL-3B-Instruct",
        3.75,
        2,
        hidden_size=2048,
        intermediate_size=11008,
        max_window_layers=70,
        num_attention_heads=16,
        num_hidden_layers=36,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        vocab_size=151936,
    ),
)
PUBLIC_MODELS: dict[str, PublicModel] = {model.name: model for model in _MODELS}
