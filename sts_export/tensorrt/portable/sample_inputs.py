"""A picture and a prompt as inputs of the four graphs.

``write_inputs`` runs no model: what one would say is left to chance.  ``walk`` goes from graph to graph as the pipeline does.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.bundle.manifest import Bundle
from sts_export.errors import RequestError
from sts_export.graphs.contracts import TensorSpec
from sts_export.requests.request import Request, room_for_answer
from sts_export.requests.rows import place_images
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.tensorrt.portable import polygraphy_script
from sts_export.tensorrt.profiles import DECODE, PREFILL

FOLDER = "polygraphy"  # in BUNDLE/engines
Arrays = Mapping[str, NDArray[Any]]
_PROMPTS = ("What is in the picture?", "What?", "?")  # for bundles with little room
_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Case:
    """One graph in one of its phases; ``name`` is that of its function in polygraphy_script."""

    name: str
    graph: str
    profile: int


CASES = (
    Case("vision_encoder", "vision_encoder", 0),
    Case("selector", "selector", 0),
    Case("llm_lower_prefill", "llm_lower", PREFILL),
    Case("llm_upper_prefill", "llm_upper", PREFILL),
    Case("llm_lower_decode", "llm_lower", DECODE),
    Case("llm_upper_decode", "llm_upper", DECODE),
)


def sample_request(bundle: Bundle, image: Any = None, prompt: str | None = None) -> Request:
    """One image and a prompt, as the pipeline prepares them, with room for two new tokens.

    Args:
        image: None: a generated one.
        prompt: None: the longest of ours that fits.

    Raises:
        ImageError, PromptError, RequestError: they do not fit the bundle or its engines.
    """
    from sts_export.media.synthetic import synthetic_image

    source = synthetic_image(0) if image is None else image
    if prompt is not None:
        return _request(bundle, source, prompt)
    for candidate in _PROMPTS[:-1]:
        with suppress(RequestError):  # PromptError is one
            return _request(bundle, source, candidate)
    return _request(bundle, source, _PROMPTS[-1])


def _request(bundle: Bundle, image: Any, prompt: str) -> Request:
    from sts_export.requests.preprocessor import Preprocessor

    manifest, started = bundle.manifest, time.perf_counter()
    inputs = Preprocessor.open(bundle.folder, manifest.model, manifest.pruning).prepare(prompt, [image])
    new_tokens = room_for_answer(manifest, inputs.input_ids, inputs.images, inputs.keeps, 2)
    return Request(inputs.input_ids, inputs.images, inputs.keeps, new_tokens, SamplingConfig(), (), True, started, 0.0)


def sample_inputs(
    bundle: Bundle, request: Request, kept: NDArray[np.int64] | None = None, token: int = 0
) -> dict[str, dict[str, NDArray[Any]]]:
    """Of every case, the inputs that follow from picture and prompt alone.

    Args:
        kept: tokens that stage 1 keeps; None: the first K.
        token: the first generated one.
    """
    manifest = bundle.manifest
    (image,), ((keep1, keep2),) = request.images, request.keeps
    mrope = bool(manifest.model.decoder.mrope_section)
    unpruned = manifest.model.unpruned_positions(manifest.pruning)
    prompt = place_images(
        request.input_ids, [image], [np.arange(keep1) if kept is None else kept], mrope=mrope, unpruned=unpruned
    )
    lower = len(prompt.input_ids)
    upper = lower - keep1 + keep2
    axes = (1, 3) if mrope else (1,)

    def positions(first: int, count: int) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = np.broadcast_to(np.arange(first, first + count), (*axes, count)).copy()
        return rows

    def number(*numbers: int) -> NDArray[np.int64]:
        return np.array(numbers, np.int64)

    one = number(token)[None]
    return {
        "vision_encoder": dict(image.encoder_inputs),
        "selector": {"token_order": image.token_order, "quota": image.quota(keep1)},
        "llm_lower_prefill": {
            "input_ids": prompt.input_ids[None],
            "attention_mask": np.ones((1, lower), np.int64),
            "stage2_slots": np.zeros(keep2, np.int64),
            "position_ids": prompt.position_ids[None],
            "write_index": number(0),
        },
        "llm_upper_prefill": {"last_row": number(upper - 1), "position_ids": positions(0, upper), "write_index": number(0)},
        "llm_lower_decode": {
            "input_ids": one,
            "attention_mask": np.ones_like(one),
            "stage2_slots": np.zeros(1, np.int64),
            "position_ids": positions(prompt.next_position, 1),
            "write_index": number(lower),
        },
        "llm_upper_decode": {"last_row": number(0), "position_ids": positions(upper, 1), "write_index": number(upper)},
    }


def walk(bundle: Bundle, request: Request, run: Callable[[Case, Arrays], Arrays]) -> None:
    """One picture and prompt through all cases: a prefill and a step of decode.

    Args:
        run: called for each case with its inputs by name; returns the outputs that the later cases go on with.
    """
    manifest = bundle.manifest
    keep1 = request.keeps[0][0]

    def call(case: Case, *given: Arrays) -> Arrays:
        merged = {name: array for arrays in given for name, array in arrays.items()}
        return run(case, {spec.name: _typed(merged[spec.name], spec) for spec in manifest.graphs[case.graph].inputs})

    def caches(graph: str, outputs: Arrays | None = None) -> Arrays:
        contract = manifest.graphs[graph]
        if outputs is not None:
            return {before: outputs[after] for before, after in contract.caches}
        inputs = [contract.input(before) for before, _ in contract.caches]
        return {spec.name: np.zeros(_shape(spec, {}, {"batch": 1}), np.float32) for spec in inputs}

    def positions(lower: Arrays) -> Arrays:
        keep = manifest.pruning.survivors_keep_positions
        return {"position_ids": lower["kept_position_ids"]} if keep else {}

    given = sample_inputs(bundle, request)
    features = call(CASES[0], given["vision_encoder"])
    chosen = call(CASES[1], features, given["selector"])
    given = sample_inputs(bundle, request, chosen["kept_index"][:keep1])
    visual = {"visual_embeds": chosen["visual_embeds"][None, :keep1]}
    lower = call(CASES[2], given["llm_lower_prefill"], visual, caches("llm_lower"))
    upper = call(CASES[3], given["llm_upper_prefill"], lower, positions(lower), caches("llm_upper"))
    given = sample_inputs(bundle, request, chosen["kept_index"][:keep1], int(upper["logits"].argmax()))
    no_visual = {"visual_embeds": np.zeros((1, 1, manifest.model.decoder.hidden_size), np.float32)}
    lower = call(CASES[4], given["llm_lower_decode"], no_visual, caches("llm_lower", lower))
    call(CASES[5], given["llm_upper_decode"], lower, positions(lower), caches("llm_upper", upper))


def _typed(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Pixel values come as float32 whatever the graphs take."""
    return array.astype(spec.dtype) if spec.dtype in _FLOATS else array


def write_inputs(bundle: Bundle) -> Path:
    """BUNDLE/engines/polygraphy: inputs.py, inputs.json and inputs.npz, for any float32 or float16 bundle.

    Raises:
        PromptError, RequestError: the bundle has no room for any prompt of ours.
    """
    from sts_export.tensorrt.record import ENGINES

    manifest = bundle.manifest
    request = sample_request(bundle)
    stored = sample_inputs(bundle, request)
    ((keep1, keep2),) = request.keeps
    (image,) = request.images
    sizes = {
        "batch": 1,
        "crops": image.crops,
        "tokens": image.crops * image.crop_rows,
        "sequence": len(request.input_ids),
        "visual": keep1,
        "survivors": len(request.input_ids) - keep1 + keep2,
    }
    once = dict.fromkeys(sizes, 1)
    cases = {
        case.name: {
            spec.name: [spec.dtype, _shape(spec, stored[case.name], once if case.profile == DECODE else sizes)]
            for spec in manifest.graphs[case.graph].inputs
        }
        for case in CASES
    }
    settings = {"precision": manifest.dtype, "kept": keep1, "visual_keep": keep2, "cases": cases}
    folder = bundle.folder / ENGINES / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(polygraphy_script.__file__, folder / "inputs.py")
    (folder / "inputs.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    arrays: dict[str, Any] = {f"{case}/{name}": array for case, inputs in stored.items() for name, array in inputs.items()}
    np.savez_compressed(folder / "inputs.npz", **arrays)
    return folder


def _shape(spec: TensorSpec, stored: Arrays, sizes: Mapping[str, int]) -> list[int]:
    if spec.name in stored:
        return list(stored[spec.name].shape)
    assert spec.dtype in _FLOATS, spec.name  # only floats may be left to chance
    return [size if isinstance(size, int) else sizes[size] for size in spec.shape]
