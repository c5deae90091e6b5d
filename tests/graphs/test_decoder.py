"""Both parts of a decoder on ONNX Runtime against transformers' own decoder layers with the same random weights.

The reference runs one request at a time, without padding, caches or graphs: embeddings are put together here, stage 2 takes
the attention probabilities of transformers' eager attention, and a decode step is one more row behind the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, MistralConfig, MistralModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from sts_export.graphs.configs import DecoderConfig
from sts_export.graphs.contracts import NEWLINE_ROW, VISUAL_ROW
from sts_export.graphs.decoder_part import decoder_part
from sts_export.graphs.model import parameters
from sts_export.graphs.parts import decoder_parts
from tests.graphs.onnx_models import bind, session

torch.set_num_threads(1)
Array = NDArray[Any]
LAYERS, WIDTH, HEADS, HEAD_DIM, VOCAB = 3, 32, 4, 8, 40
CAPACITY, POSITIONS = 48, 200
VISUAL, KEEP = 9, 4
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Variant:
    """A decoder and the choices of stage 2."""

    decoder: str = "llama"
    kv_heads: int = 2
    prune_layer: int = 2
    score_layer: str = "own"
    positions: str = "reindex"
    biases: bool = False
    newline: bool = False


VARIANTS = {
    "llama": Variant(),
    "llama_biases": Variant(kv_heads=4, prune_layer=1, score_layer="next", biases=True),
    "vicuna_newlines": Variant(kv_heads=4, score_layer="next", newline=True),
    "mistral_newlines": Variant("mistral", kv_heads=1, positions="keep", newline=True),
    "qwen": Variant("qwen", positions="keep"),
    "qwen_next_reindexed": Variant("qwen", kv_heads=1, prune_layer=1, score_layer="next"),
}


@dataclass(frozen=True)
class Case:
    """One decoder three times: transformers' modules, its lower and its upper part."""

    variant: Variant
    config: DecoderConfig
    model: Any
    head: Tensor
    newline: Tensor
    lower: ort.InferenceSession
    upper: ort.InferenceSession
    parameters: set[str]


@dataclass(frozen=True)
class Request:
    """ids: [sequence]; positions: [sequence] or [3, sequence]; embeds: [visual, width]; tokens: to be decoded."""

    ids: Array
    positions: Array
    embeds: Array
    tokens: tuple[int, ...] = ()


@cache
def case(name: str) -> Case:
    variant = VARIANTS[name]
    settings: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": variant.kv_heads,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attn_implementation": "eager",
    }
    qwen = variant.decoder == "qwen"
    if qwen:
        settings["rope_parameters"]["mrope_section"] = [1, 2, 1]
        model: Any = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**settings))
    elif variant.decoder == "mistral":
        model = MistralModel(MistralConfig(**settings, sliding_window=None))
    else:
        model = LlamaModel(LlamaConfig(**settings, attention_bias=variant.biases, mlp_bias=variant.biases))
    config = DecoderConfig(
        WIDTH,
        48,
        LAYERS,
        HEADS,
        variant.kv_heads,
        HEAD_DIM,
        VOCAB,
        1e-5,
        10000.0,
        attention_bias=variant.biases or qwen,
        output_bias=variant.biases,
        mlp_bias=variant.biases,
        mrope_section=(1, 2, 1) if qwen else (),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            scale = 1.0 if "embed" in key else 0.3 if weight.dim() == 1 else 1.5 / weight.shape[1] ** 0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale + ("norm" in key))
    head, newline = torch.randn(VOCAB, WIDTH, generator=generator), torch.randn(WIDTH, generator=generator)
    weights = {f"model.{key}": weight.numpy() for key, weight in model.state_dict().items()}
    weights |= {"lm_head.weight": head.numpy(), "image_newline": newline.numpy()}
    lower, upper = (
        decoder_part(
            config,
            part,
            "float32",
            prefix="model",
            head_name="lm_head",
            capacity=CAPACITY,
            positions=POSITIONS,
            score_next=variant.score_layer == "next",
            with_newline=variant.newline,
        )
        for part in decoder_parts(LAYERS, (variant.prune_layer,))
    )
    names = {item.name for graph in (lower, upper) for item in parameters(graph)}
    for graph in (lower, upper):
        bind(graph, weights)
    return Case(variant, config, model.eval(), head, newline, session(lower), session(upper), names)


# transformers, request by request


def embedded(found: Case, request: Request) -> Tensor:
    """[1, sequence + tokens, width]"""
    rows, visual = [], iter(torch.from_numpy(request.embeds))
    for number in [*request.ids.tolist(), *request.tokens]:
        if number == VISUAL_ROW:
            rows.append(next(visual))
        elif number == NEWLINE_ROW:
            rows.append(found.newline)
        else:
            rows.append(found.model.embed_tokens.weight[number])
    return torch.stack(rows)[None]


def run_layers(found: Case, x: Tensor, positions: Array, layers: range) -> tuple[Tensor, Tensor]:
    """[1, rows, width] -> the same, and the last layer's attention [heads, rows, rows]."""
    where = torch.from_numpy(positions)
    rotary = found.model.rotary_emb(x, where[:, None] if where.dim() == 2 else where[None])
    count = x.shape[1]
    mask = torch.full((1, 1, count, count), float("-inf")).triu(1)
    attention = torch.empty(0)
    for layer in layers:
        module = found.model.layers[layer]
        _, attention = module.self_attn(module.input_layernorm(x), position_embeddings=rotary, attention_mask=mask)
        x = module(x, attention_mask=mask, position_embeddings=rotary)
    return x, attention[0]


@dataclass(frozen=True)
class Expected:
    hidden: Array  # [survivors, width]
    kept: list[int]
    logits: Array  # [1 + tokens, vocab]


@torch.no_grad()
def expected(found: Case, request: Request, keep: int) -> Expected:
    variant, length = found.variant, len(request.ids)
    following = request.positions.max() + 1 + np.arange(len(request.tokens))
    tail = np.broadcast_to(following, (*request.positions.shape[:-1], len(following)))
    positions = np.concatenate([request.positions, tail], axis=-1)
    x = embedded(found, request)
    lower = range(variant.prune_layer)
    hidden, attention = run_layers(found, x, positions, lower)
    if variant.score_layer == "next":  # of the layer after, without what it makes of the rows
        _, attention = run_layers(found, hidden, positions, range(variant.prune_layer, variant.prune_layer + 1))
    scores = attention[:, length - 1].mean(dim=0).numpy()
    visual = np.flatnonzero(request.ids == VISUAL_ROW)
    ranked = visual[np.argsort(-scores[visual], kind="stable")]
    if keep < len(ranked):
        assert scores[ranked[keep - 1]] - scores[ranked[keep]] > 1e-5, "choose another seed: rounding decides here"
    kept = sorted([*np.flatnonzero(request.ids != VISUAL_ROW).tolist(), *ranked[:keep].tolist()])
    rows = [*kept, *range(length, length + len(request.tokens))]
    where = positions[..., rows]
    if variant.positions == "reindex":
        where = np.broadcast_to(np.arange(len(rows)), where.shape).copy()
    upper, _ = run_layers(found, hidden[:, rows], where, range(variant.prune_layer, LAYERS))
    logits = found.model.norm(upper)[0, len(kept) - 1 :] @ found.head.T
    return Expected(hidden[0, kept].numpy(), kept, logits.numpy())


# The two graphs, requests together


@dataclass
class Run:
    """Outputs of the prefill, and the caches of both graphs by the name of their input."""

    lengths: Array
    prefill: dict[str, Array]
    logits: list[Array]
    caches: dict[str, Array]
    upper_lengths: Array


def call(graph: ort.InferenceSession, feeds: dict[str, Array], caches: dict[str, Array]) -> dict[str, Array]:
    own = {item.name: caches[item.name] for item in graph.get_inputs() if "cache" in item.name}
    names = [item.name for item in graph.get_outputs()]
    outputs = dict(zip(names, graph.run(names, {**feeds, **own}), strict=True))
    caches.update({name.replace("_out", ""): outputs.pop(name) for name in names if "cache" in name})
    return outputs


def run(found: Case, requests: list[Request], keep: int, padding: int = 0) -> Run:
    """Prefill and all decode steps; ``padding`` marks rows that nobody may read."""
    rng = np.random.default_rng(padding)
    lengths, batch = np.array([len(request.ids) for request in requests]), len(requests)
    longest = int(lengths.max()) + padding
    axes = requests[0].positions.shape[:-1]
    ids = rng.integers(0, VOCAB, (batch, longest)) if padding else np.zeros((batch, longest), np.int64)
    positions = np.full((batch, *axes, longest), padding, np.int64)
    for index, request in enumerate(requests):
        ids[index, : lengths[index]] = request.ids
        positions[index, ..., : lengths[index]] = request.positions
    # Rows of a cache that were not written yet hold anything.
    shape = (batch, found.config.num_kv_heads, CAPACITY, HEAD_DIM)
    caches = {
        f"{kind}_cache.{i}": rng.standard_normal(shape, np.float32) * 9 for i in range(LAYERS) for kind in ("key", "value")
    }
    feeds = {
        "input_ids": ids,
        "attention_mask": (np.arange(longest) < lengths[:, None]).astype(np.int64),
        "visual_embeds": np.stack([request.embeds for request in requests]),
        "stage2_slots": np.zeros(keep, np.int64),
        "position_ids": positions,
        "write_index": np.zeros(batch, np.int64),
    }
    lower = call(found.lower, feeds, caches)
    keeps_positions = found.variant.positions == "keep"

    def upper(outputs: dict[str, Array], contiguous: Array, write_index: Array) -> Array:
        kept = outputs["kept_position_ids"]
        reindexed = np.broadcast_to(contiguous[:, None] if axes else contiguous, kept.shape)
        feeds = {name: outputs[name] for name in ("hidden_states", "last_row")}
        feeds |= {"position_ids": kept if keeps_positions else reindexed, "write_index": write_index}
        return call(found.upper, feeds, caches)["logits"]

    survivors = lower["kept_rows"].shape[1]
    logits = [upper(lower, np.broadcast_to(np.arange(survivors), (batch, survivors)), np.zeros(batch, np.int64))]
    upper_lengths = lengths - [int((request.ids == VISUAL_ROW).sum()) for request in requests]
    upper_lengths = upper_lengths + [keep if (request.ids == VISUAL_ROW).any() else 0 for request in requests]
    following = np.array([request.positions.max() + 1 for request in requests])
    for step in range(len(requests[0].tokens)):
        feeds = {
            "input_ids": np.array([[request.tokens[step]] for request in requests]),
            "attention_mask": np.ones((batch, 1), np.int64),
            "visual_embeds": rng.standard_normal((batch, 1, WIDTH)).astype(np.float32),
            "stage2_slots": np.zeros(1, np.int64),
            "position_ids": np.broadcast_to((following + step).reshape(batch, *[1] * (len(axes) + 1)), (batch, *axes, 1)),
            "write_index": lengths + step,
        }
        decoded = call(found.lower, feeds, caches)
        assert (decoded["kept_rows"] == 0).all() and (decoded["last_row"] == 0).all()
        logits.append(upper(decoded, (upper_lengths + step)[:, None], upper_lengths + step))
    return Run(lengths, lower, logits, caches, upper_lengths)


def random_request(found: Case, rng: np.random.Generator, visual: int = VISUAL) -> Request:
    """Text, an image's rows (newlines among them where the decoder has such), text; ids of the image token are text."""
    before, after = rng.integers(0, 6), rng.integers(1, 7)
    image = [VISUAL_ROW] * visual
    if found.variant.newline:
        for place in sorted(rng.integers(0, visual + 1, 3), reverse=True):
            image.insert(int(place), NEWLINE_ROW)
    ids = np.array([*rng.integers(0, VOCAB, before), *image, *rng.integers(0, VOCAB, after)], np.int64)
    positions = np.arange(len(ids))
    if found.config.mrope_section:
        positions = np.sort(rng.integers(0, 100, (3, len(ids))))
    embeds = rng.standard_normal((max(visual, 1), WIDTH)).astype(np.float32)
    return Request(ids, positions, embeds, tuple(rng.integers(0, VOCAB, 3).tolist()))


def batch_of(name: str, count: int = 3) -> tuple[Case, list[Request]]:
    """Requests of different lengths."""
    found = case(name)
    for seed in range(100):
        requests = [random_request(found, np.random.default_rng((seed, index))) for index in range(count)]
        if len({len(request.ids) for request in requests}) == count:
            return found, requests
    raise AssertionError("no such seed")


def assert_same(found: Array, wanted: Array) -> None:
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE * float(np.abs(wanted).max()))


@pytest.mark.parametrize("keep", [1, KEEP, VISUAL])
@pytest.mark.parametrize("name", VARIANTS)
def test_same_as_transformers(name: str, keep: int) -> None:
    """Prefill and decode of a batch with right padding: rows, positions and logits are those of each request alone."""
    found, requests = batch_of(name)
    done = run(found, requests, keep)
    for index, request in enumerate(requests):
        wanted = expected(found, request, keep)
        count = len(wanted.kept)
        assert done.prefill["kept_rows"][index, :count].tolist() == wanted.kept
        assert (done.prefill["kept_rows"][index, count:] >= len(request.ids)).all()  # padding, behind all that is real
        assert done.prefill["last_row"][index] == count - 1
        newlines = np.flatnonzero(request.ids == NEWLINE_ROW).tolist()
        assert len(newlines) == (3 if found.variant.newline else 0) and set(newlines) <= set(wanted.kept)
        kept_positions = done.prefill["kept_position_ids"][index, ..., :count]
        np.testing.assert_array_equal(kept_positions, request.positions[..., wanted.kept])
        assert_same(done.prefill["hidden_states"][index, :count], wanted.hidden)
        assert_same(np.stack([logits[index] for logits in done.logits]), wanted.logits)


@pytest.mark.parametrize("name", VARIANTS)
def test_text_prompts(name: str) -> None:
    """One dummy row of visual_embeds, nothing to drop."""
    found = case(name)
    rng = np.random.default_rng(3)
    requests = [replace(random_request(found, rng, visual=0), tokens=(1, 2)) for _ in range(2)]
    done = run(found, requests, 1)
    for index, request in enumerate(requests):
        wanted = expected(found, request, 1)
        assert done.prefill["kept_rows"][index].tolist() == list(range(done.lengths.max()))
        assert_same(np.stack([logits[index] for logits in done.logits]), wanted.logits)


@pytest.mark.parametrize("name", VARIANTS)
def test_batch_and_padding_change_nothing(name: str) -> None:
    """Alone or together, whatever the padding holds, the caches get the same rows."""
    found, requests = batch_of(name)
    together = run(found, requests, KEEP, padding=4)
    for index, request in enumerate(requests):
        alone = run(found, [request], KEEP)
        count = alone.prefill["kept_rows"].shape[1]
        np.testing.assert_array_equal(together.prefill["kept_rows"][index, :count], alone.prefill["kept_rows"][0])
        assert_same(together.prefill["hidden_states"][index, :count], alone.prefill["hidden_states"][0])
        for ours, theirs in zip(together.logits, alone.logits, strict=True):
            assert_same(ours[index], theirs[0])
        steps = len(request.tokens)
        for cache_name, rows in alone.caches.items():
            in_lower = int(cache_name.split(".")[1]) < found.variant.prune_layer
            used = steps + int((alone.lengths if in_lower else alone.upper_lengths)[0])
            assert_same(together.caches[cache_name][index, :, :used], rows[0, :, :used])


@pytest.mark.parametrize("name", ["vicuna_newlines", "mistral_newlines"])
def test_newline_rows_take_the_learned_row(name: str) -> None:
    """As many newlines as one likes, more than visual rows, none of which stage 2 may count or drop."""
    found = case(name)
    ids = np.array([3, *[NEWLINE_ROW] * 4, VISUAL_ROW, NEWLINE_ROW, VISUAL_ROW, VISUAL_ROW, NEWLINE_ROW, 5], np.int64)
    embeds = np.random.default_rng(7).standard_normal((3, WIDTH)).astype(np.float32)
    request = Request(ids, np.arange(len(ids)), embeds)
    kept = run(found, [request], 1).prefill["kept_rows"][0].tolist()
    assert len(kept) == len(ids) - 2 and kept == expected(found, request, 1).kept
    # The same rows as visual ones, where nothing is dropped, give the same hidden states.
    as_visual = Request(
        np.where(ids == NEWLINE_ROW, VISUAL_ROW, ids),
        request.positions,
        embedded(found, request)[0, 1:-1].detach().numpy(),
    )
    hidden = run(found, [request], 3).prefill["hidden_states"]
    assert_same(hidden, run(found, [as_visual], 9).prefill["hidden_states"])


def test_each_axis_of_mrope_turns_its_own_channels() -> None:
    """Text has three equal positions, which is plain rotary embedding; moving any one axis changes the result."""
    found, requests = batch_of("qwen", 1)
    length = len(requests[0].ids)
    text = replace(requests[0], positions=np.tile(np.arange(length), (3, 1)), tokens=())
    plain = decoder_part(
        replace(found.config, mrope_section=()),
        decoder_parts(LAYERS, (2,))[0],
        "float32",
        prefix="model",
        head_name="lm_head",
        capacity=CAPACITY,
        positions=POSITIONS,
    )
    bind(plain, {f"model.{key}": weight.numpy() for key, weight in found.model.state_dict().items()})
    hidden = run(found, [text], VISUAL).prefill["hidden_states"]
    plain_feeds = {
        "input_ids": text.ids[None],
        "attention_mask": np.ones((1, length), np.int64),
        "visual_embeds": text.embeds[None],
        "stage2_slots": np.zeros(VISUAL, np.int64),
        "position_ids": np.arange(length)[None],
        "write_index": np.zeros(1, np.int64),
    }
    empty = {
        f"{kind}_cache.{i}": np.zeros((1, 2, CAPACITY, HEAD_DIM), np.float32) for i in range(2) for kind in ("key", "value")
    }
    assert_same(hidden, call(session(plain), plain_feeds, empty)["hidden_states"])
    for axis in range(3):
        moved = text.positions.copy()
        moved[axis, 2:6] += 5
        other = run(found, [replace(text, positions=moved)], VISUAL).prefill["hidden_states"]
        assert np.abs(other - hidden)[:, 2:].max() > 1e-2
        assert_same(other, expected(found, replace(text, positions=moved), VISUAL).hidden[None])


@pytest.mark.parametrize(
    ("name", "biased"),
    [
        ("llama", set()),
        ("mistral_newlines", set()),
        ("llama_biases", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("qwen", {"q_proj", "k_proj", "v_proj"}),
    ],
)
def test_biases_are_transformers_own(name: str, biased: set[str]) -> None:
    found = case(name)
    named = {f"model.{key}" for key in found.model.state_dict()}
    extra = {"lm_head.weight", *(["image_newline"] if found.variant.newline else [])}
    assert found.parameters == named | extra
    assert {key.split(".")[-2] for key in found.parameters if key.endswith("bias")} == biased
