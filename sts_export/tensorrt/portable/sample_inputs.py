"""A picture and a prompt as inputs of the four graphs.

``write_inputs`` runs no model: what one would say is left to chance.  ``walk`` goes from graph to graph as the pipeline does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.bundle.manifest import Bundle, Manifest
from sts_export.errors import RequestError
from sts_export.files import new_file, replace_file, replace_json
from sts_export.graphs.contracts import TensorSpec
from sts_export.requests.feeds import decode_feeds, passed_on, prefill_feeds, selector_feeds
from sts_export.requests.request import Request, room_for_answer
from sts_export.requests.rows import place_images
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.tensorrt.portable import polygraphy_script
from sts_export.tensorrt.profiles import DECODE, PREFILL

FOLDER = "polygraphy"  # in BUNDLE/engines
Arrays = Mapping[str, NDArray[Any]]
_PROMPTS = ("What is in the picture?", "What?", "?")  # for bundles with little room


@dataclass(frozen=True)
class Case:
    """One graph in one of its phases; ``name`` is what polygraphy_script knows it by."""

    name: str
    graph: str
    profile: int


def cases_of(manifest: Manifest) -> tuple[Case, ...]:
    """In the order in which they run: the graphs of an image, then the decoder's parts in prefill, and in decode."""
    image = tuple(Case(name, name, PREFILL) for name, contract in manifest.graphs.items() if not contract.caches)
    parts = [part.name for part in manifest.pruning.parts]
    prefill = tuple(Case(f"{name}_prefill", name, PREFILL) for name in parts)
    return (*image, *prefill, *(Case(f"{name}_decode", name, DECODE) for name in parts))


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
    bundle: Bundle,
    request: Request,
    kept: NDArray[np.int64] | None = None,
    token: int = 0,
    *,
    survivors_keep_positions: bool,
) -> dict[str, dict[str, NDArray[Any]]]:
    """Of every case, the inputs that come from the host.

    Args:
        kept: tokens that stage 1 keeps; None: the first K.
        token: the first generated one.
        survivors_keep_positions: those of later parts are passed on by the part before (``requests.feeds``).
    """
    manifest = bundle.manifest
    (image,), (keeps,) = request.images, request.keeps
    parts, mrope = manifest.pruning.parts, bool(manifest.model.decoder.mrope_section)
    unpruned = manifest.model.unpruned_positions(manifest.pruning)
    chosen = np.arange(keeps[0]) if kept is None else kept
    prompt = place_images(request.input_ids, [image], [chosen], mrope=mrope, unpruned=unpruned)
    whole, keep = keeps[-1] == image.num_tokens, survivors_keep_positions
    draws = manifest.pruning.draws_inside
    seed = request.seed if draws else None
    prefill = prefill_feeds(parts, prompt, keeps, whole=whole, survivors_keep_positions=keep, seed=seed)
    rows, positions = ([np.array([one]) for one in ones] for ones in (prefill.rows, prefill.next_positions))
    decode = decode_feeds(parts, np.array([token]), rows, positions, mrope=mrope, survivors_keep_positions=keep, draws=draws)
    return {
        "vision_encoder": dict(image.encoder_inputs),
        "selector": selector_feeds(manifest.graphs["selector"], image, keeps[0], request),
        **{f"{part}_prefill": dict(feeds) for part, feeds in prefill.feeds.items()},
        **{f"{part}_decode": dict(feeds) for part, feeds in decode.items()},
    }


def walk(bundle: Bundle, request: Request, run: Callable[[Case, Arrays], Arrays]) -> None:
    """One picture and prompt through all cases: a prefill and a step of decode.

    Args:
        run: called for each case with its inputs by name; returns the outputs that the later cases go on with.
    """
    manifest = bundle.manifest
    keep1 = request.keeps[0][0]
    given = partial(sample_inputs, bundle, request, survivors_keep_positions=manifest.pruning.survivors_keep_positions)
    host, kept = given(), None
    outputs: dict[str, NDArray[Any]] = {}  # of the case before
    caches = {
        spec.name: np.zeros(_shape(spec, {}, {"batch": 1}), np.float32)
        for contract in manifest.graphs.values()
        for spec in contract.inputs
        if spec not in contract.own_inputs
    }
    for case in cases_of(manifest):
        contract = manifest.graphs[case.graph]
        feeds = {**caches, **passed_on(contract, outputs), **host[case.name]}
        for spec in contract.inputs:
            if spec.may_be_absent and spec.name not in feeds:
                feeds[spec.name] = np.zeros(_shape(spec, {}, {"batch": 1, "visual": 1}), np.float32)
        outputs = dict(run(case, {spec.name: _typed(feeds[spec.name], spec) for spec in contract.inputs}))
        caches |= {before: outputs[after] for before, after in contract.caches}
        if "kept_index" in outputs:
            kept = outputs["kept_index"][:keep1]
            host = given(kept)
            # Of the chosen rows the first K are kept; the decoder takes them as those of a batch of one.
            outputs = {name: array[None, :keep1] for name, array in outputs.items() if name != "merged_into"}
        elif "logits" in outputs:
            host = given(kept, int(outputs["logits"].argmax()))
            outputs = {}


def _typed(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Pixel values come as float32 whatever the graphs take."""
    return array.astype(spec.dtype) if spec.is_float else array


def write_inputs(bundle: Bundle) -> Path:
    """BUNDLE/engines/polygraphy: inputs.py, inputs.json and inputs.npz, for any float32 or float16 bundle.

    Raises:
        PromptError, RequestError: the bundle has no room for any prompt of ours.
    """
    from sts_export.tensorrt.record import ENGINES

    manifest = bundle.manifest
    request = sample_request(bundle)
    ((keep1, keep2),) = request.keeps
    stored = sample_inputs(bundle, request, survivors_keep_positions=False)
    phases = {PREFILL: {"batch": 1, "visual": keep1}, DECODE: {"batch": 1, "visual": 1}}
    cases: dict[str, dict[str, list[Any]]] = {}
    for case in cases_of(manifest):
        contract, arrays, sizes = manifest.graphs[case.graph], stored[case.name], phases[case.profile]
        sizes |= contract.sizes({name: array.shape for name, array in arrays.items()})
        arrays |= {spec.name: _last_rows(spec, arrays, sizes) for spec in contract.own_inputs if _is_left_out(spec, arrays)}
        cases[case.name] = {spec.name: [spec.dtype, _shape(spec, arrays, sizes)] for spec in contract.inputs}
    settings = {"precision": manifest.dtype, "kept": keep1, "visual_keep": keep2, "cases": cases}
    folder = bundle.folder / ENGINES / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "inputs.py", Path(polygraphy_script.__file__).read_bytes())
    replace_json(folder / "inputs.json", settings)
    files: dict[str, Any] = {f"{case}/{name}": array for case, inputs in stored.items() for name, array in inputs.items()}
    with new_file(folder / "inputs.npz") as stream:
        np.savez_compressed(stream, **files)
    return folder


def _is_left_out(spec: TensorSpec, arrays: Arrays) -> bool:
    """Passed on by a graph that does not run here, and no float, which may be left to chance."""
    return spec.name not in arrays and not spec.is_float


def _last_rows(spec: TensorSpec, arrays: Arrays, sizes: Mapping[str, int]) -> NDArray[np.int64]:
    """What a decoder part passes on beside floats are numbers of rows: the last ones are as good as any."""
    rows, shape = arrays["position_ids"].shape[-1], _shape(spec, arrays, sizes)
    count = shape[-1] if len(shape) > 1 else 1
    numbers: NDArray[np.int64] = np.broadcast_to(np.arange(rows - count, rows), (1, count))
    return numbers.reshape(shape)


def _shape(spec: TensorSpec, stored: Arrays, sizes: Mapping[str, int]) -> list[int]:
    if spec.name in stored:
        return list(stored[spec.name].shape)
    return [size if isinstance(size, int) else sizes[size] for size in spec.shape]
