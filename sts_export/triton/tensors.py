"""Inputs and outputs of the model, named as Triton's vLLM and TensorRT-LLM backends name theirs where they have them.

Dimensions are without the batch's, which comes before them all.  Every input is optional for Triton: what a request needs is
``text_input`` or ``messages``, and the model says so in one line.
Sources: src/model.py of github.com/triton-inference-server/vllm_backend; the decoupled ``tensorrt_llm_bls`` of
github.com/triton-inference-server/tensorrtllm_backend.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

DTYPES: dict[str, DTypeLike] = {
    "TYPE_STRING": np.object_,
    "TYPE_BOOL": np.bool_,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_UINT32": np.uint32,
    "TYPE_FP32": np.float32,
}


@dataclass(frozen=True)
class Tensor:
    """One input or output.

    Args:
        kind: data type as config.pbtxt names it, a key of DTYPES.
        dims: without the batch's; -1 is any number.
        meaning: for readers of the repository's README.
    """

    name: str
    kind: str
    dims: tuple[int, ...]
    meaning: str

    @property
    def is_list(self) -> bool:
        """Whether a row of the batch has any number of values."""
        return self.dims == (-1,)


def _one(name: str, kind: str, meaning: str) -> Tensor:
    return Tensor(name, f"TYPE_{kind}", (1,), meaning)


def _list(name: str, kind: str, meaning: str) -> Tensor:
    return Tensor(name, f"TYPE_{kind}", (-1,), meaning)


# Fields of the answer's body: the tensor is the field.
SETTINGS = (
    _one("max_tokens", "INT32", "Most tokens of the answer"),
    _one("budget", "STRING", "Visual tokens that a decoder layer sees on average: 32 or 10%; default: the bundle's"),
    _one("temperature", "FP32", "Nothing, or 0: greedy"),
    _one("top_p", "FP32", "Nucleus sampling"),
    _one("top_k", "INT32", "Sampling among the likeliest"),
    _one("min_p", "FP32", "Sampling above a share of the likeliest"),
    _one("seed", "INT64", "Of sampling, and of stages that draw"),
    _one("repetition_penalty", "FP32", "As in transformers"),
    _one("presence_penalty", "FP32", "As in OpenAI's API"),
    _one("frequency_penalty", "FP32", "As in OpenAI's API"),
    _list("stop", "STRING", "Texts that end the answer"),
    _one("ignore_eos", "BOOL", "Go on up to max_tokens"),
)

RETURNS = (
    _one("return_finish_reason", "BOOL", "Default: true"),
    _one("return_num_input_tokens", "BOOL", "Default: true"),
    _one("return_num_output_tokens", "BOOL", "Default: true"),
    _one("return_visual_tokens", "BOOL", "Default: true"),
    _one("return_cumulative_logprob", "BOOL", "Default: false"),
    _one("return_logprobs", "BOOL", "Default: false; top_logprobs of sampling_parameters says how many others"),
    _one("return_kept", "BOOL", "Default: false"),
    _one("return_timings", "BOOL", "Default: false"),
)

INPUTS = (
    _one("text_input", "STRING", "A question, for the bundle's chat template"),
    _one("messages", "STRING", "Instead of text_input: a chat, JSON as in OpenAI's API"),
    _list("image", "STRING", "Files of pictures: bytes, or base64 of them; an empty one is passed over"),
    _list("image_url", "STRING", "URLs of pictures: data, and http, https and file where the repository allows them"),
    _one("stream", "BOOL", "Answer piece by piece"),
    *SETTINGS,
    _one("sampling_parameters", "STRING", "The settings above and others of OpenAI's API as one JSON object"),
    _one("exclude_input_in_output", "BOOL", "False: text_input comes before the answer; default: true"),
    _one("chat_template", "BOOL", "False: text_input is the whole prompt, image tokens included; default: true"),
    *RETURNS,
)

OUTPUTS = (
    _one("text_output", "STRING", "The answer, or its next piece"),
    _one("finish_reason", "STRING", "stop or length; in a stream with the last response"),
    _one("num_input_tokens", "UINT32", "Prompt tokens that the decoder saw; in a stream with the last response"),
    _one("num_output_tokens", "UINT32", "Tokens of this response: in a stream they add up"),
    Tensor(
        "visual_tokens", "TYPE_UINT32", (3,), "Before pruning, after stage 1, after stage 2; in a stream with the last response"
    ),
    _one("cumulative_logprob", "FP32", "Sum up to here"),
    _one("logprobs", "STRING", "JSON of this response's tokens, as the vLLM backend writes it"),
    _list("kept_stage1", "INT32", "What stage 1 kept: positions among each picture's tokens, one picture after the other"),
    _list("kept_stage1_counts", "INT32", "How many of kept_stage1 are of each picture"),
    _list("kept_stage2", "INT32", "What stage 2 kept: positions among the tokens of all pictures"),
    _one("timings_ms", "STRING", "JSON: where the time went"),
)

# Of the model that returns features: no batch, several pictures a request.
ENCODER_INPUTS = (
    _list("image", "STRING", "Files of pictures: bytes, or base64 of them; an empty one is passed over"),
    _list("image_url", "STRING", "URLs of pictures: data, and http, https and file where the repository allows them"),
    _one("budget", "STRING", "As for answers"),
)


def encoder_outputs(width: int) -> tuple[Tensor, ...]:
    """Of the model that returns features.

    Args:
        width: of a feature.
    """
    return (
        Tensor("features", "TYPE_FP32", (-1, width), "What the decoder gets of the pictures, one after the other: kept tokens"),
        _list("kept", "INT32", "Their positions among each picture's tokens, in the same order; below 0: CLS tokens"),
        _list("kept_counts", "INT32", "How many of them are of each picture"),
    )
