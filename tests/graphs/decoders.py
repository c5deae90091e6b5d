"""Small random decoders: transformers' own modules, run without padding, caches or graphs, and the graphs of all parts.

The reference runs one request at a time: embeddings are put together here, stage 2 takes the attention probabilities of
transformers' eager attention, and a decode step is one more row behind the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, MistralConfig, MistralModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from sts_export.graphs.configs import DecoderConfig
from sts_export.graphs.contracts import NEWLINE_ROW, VISUAL_ROW, GraphContract
from sts_export.graphs.decoder.contract import decoder_part_contract
from sts_export.graphs.decoder.part import decoder_part
from sts_export.graphs.decoder.parts import decoder_parts
from sts_export.graphs.model import parameters
from sts_export.pruning.stage2.last_token import LastToken, ScoreLayer
from tests.graphs.onnx_models import bind, session

torch.set_num_threads(1)
Array = NDArray[Any]
LAYERS, WIDTH, HEADS, HEAD_DIM, VOCAB = 4, 32, 4, 8, 40
CAPACITY, POSITIONS = 48, 200
VISUAL = 9


@dataclass(frozen=True)
class Variant:
    """A decoder, where it is cut, and the choices of stage 2."""

    decoder: str = "llama"
    kv_heads: int = 2
    cuts: tuple[int, ...] = (2,)
    score_layer: ScoreLayer = "own"
    positions: str = "reindex"
    biases: bool = False
    newline: bool = False


VARIANTS = {
    "llama": Variant(),
    "llama_biases": Variant(kv_heads=4, cuts=(1,), score_layer="next", biases=True),
    "vicuna_newlines": Variant(kv_heads=4, score_layer="next", newline=True),
    "mistral_newlines": Variant("mistral", kv_heads=1, positions="keep", newline=True),
    "qwen": Variant("qwen", positions="keep"),
    "qwen_next_reindexed": Variant("qwen", kv_heads=1, cuts=(1,), score_layer="next"),
    "llama_cut_twice": Variant(cuts=(1, 2)),
    "llama_cut_thrice": Variant(kv_heads=4, cuts=(1, 2, 3), positions="keep"),
    "vicuna_newlines_cut_twice": Variant(kv_heads=4, cuts=(1, 3), score_layer="next", positions="keep", newline=True),
    "qwen_cut_twice": Variant("qwen", cuts=(2, 3)),
}


@dataclass(frozen=True)
class Case:
    """One decoder twice: transformers' modules, and a graph for each part."""

    variant: Variant
    config: DecoderConfig
    model: Any
    head: Tensor
    newline: Tensor
    models: tuple[Any, ...]
    parts: tuple[ort.InferenceSession, ...]
    contracts: tuple[GraphContract, ...]
    parameters: set[str]

    @property
    def bounds(self) -> tuple[int, ...]:
        """First layer of each part, and the number of layers."""
        return (0, *self.variant.cuts, LAYERS)


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
    parts = decoder_parts(LAYERS, variant.cuts)
    graphs = [
        decoder_part(
            config,
            part,
            "float32",
            prefix="model",
            head_name="lm_head",
            capacity=CAPACITY,
            positions=POSITIONS,
            stage2=LastToken().build,
            needs=LastToken(score_layer=variant.score_layer).needs,
            with_newline=variant.newline,
        )
        for part in parts
    ]
    names = {item.name for graph in graphs for item in parameters(graph)}
    for graph in graphs:
        bind(graph, weights)
    contracts = tuple(decoder_part_contract(config, part, CAPACITY, "float32") for part in parts)
    return Case(variant, config, model.eval(), head, newline, tuple(graphs), tuple(map(session, graphs)), contracts, names)


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
class Cut:
    """What is left at a cut: rows [survivors] of the part before it, and their states [survivors, width]."""

    kept: list[int]
    hidden: Array


@torch.no_grad()
def expected(found: Case, request: Request, keeps: tuple[int, ...]) -> tuple[list[Cut], Array]:
    """All layers over all rows, some of which are dropped at each cut -> the cuts, and logits [1 + tokens, vocab].

    Args:
        keeps: visual rows that are left after each cut.
    """
    variant, length, following = found.variant, len(request.ids), len(request.tokens)
    tail = np.broadcast_to(request.positions.max() + 1 + np.arange(following), (*request.positions.shape[:-1], following))
    where = np.concatenate([request.positions, tail], axis=-1)
    x, visual = embedded(found, request), request.ids == VISUAL_ROW
    cuts = []
    for first, end, keep in zip(found.bounds, found.bounds[1:], (*keeps, None), strict=False):
        x, attention = run_layers(found, x, where, range(first, end))
        if keep is None:
            break
        if variant.score_layer == "next":  # of the layer after, without what it makes of the rows
            _, attention = run_layers(found, x, where, range(end, end + 1))
        scores = attention[:, length - 1, :length].mean(dim=0).numpy()
        candidates = np.flatnonzero(visual)
        ranked = candidates[np.argsort(-scores[candidates], kind="stable")]
        if keep < len(ranked):
            assert scores[ranked[keep - 1]] - scores[ranked[keep]] > 1e-5, "choose another seed: rounding decides here"
        kept = sorted([*np.flatnonzero(~visual).tolist(), *ranked[:keep].tolist()])
        cuts.append(Cut(kept, x[0, kept].numpy()))
        rows = [*kept, *range(length, length + following)]
        x, where, visual, length = x[:, rows], where[..., rows], visual[kept], len(kept)
        if variant.positions == "reindex":
            where = np.broadcast_to(np.arange(len(rows)), where.shape).copy()
    logits = found.model.norm(x)[0, length - 1 :] @ found.head.T
    return cuts, logits.numpy()


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
