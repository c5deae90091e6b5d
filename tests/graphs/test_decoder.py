"""All parts of a decoder on ONNX Runtime against transformers' own decoder layers with the same random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort
import pytest

from sts_export.graphs.contracts import NEWLINE_ROW, PASSED_ON, VISUAL_ROW, GraphContract
from sts_export.graphs.decoder.part import decoder_part
from sts_export.graphs.decoder.parts import decoder_parts
from sts_export.graphs.sizes import derived_sizes
from sts_export.pruning.stage2.last_token import LastToken
from tests.graphs.decoders import (
    CAPACITY,
    HEAD_DIM,
    LAYERS,
    POSITIONS,
    VARIANTS,
    VISUAL,
    VOCAB,
    WIDTH,
    Array,
    Case,
    Request,
    batch_of,
    case,
    embedded,
    expected,
    random_request,
)
from tests.graphs.onnx_models import bind, session

KEEP = 4
TOLERANCE = 2e-5


def keeps_of(found: Case, keep: int) -> tuple[int, ...]:
    """Visual rows after each cut, fewer and fewer."""
    return (keep, max(1, keep // 2), 1)[: len(found.variant.cuts)]


@dataclass
class Run:
    """Outputs of each part's prefill, logits of every step, and the caches of all graphs by the name of their input.

    lengths: [parts, batch]; rows of each request.
    """

    lengths: Array
    prefill: list[dict[str, Array]]
    logits: list[Array]
    caches: dict[str, Array]


def call(graph: ort.InferenceSession, feeds: dict[str, Array], caches: dict[str, Array]) -> dict[str, Array]:
    """``feeds`` may hold more than the graph takes."""
    given = {item.name: {**feeds, **caches}[item.name] for item in graph.get_inputs()}
    names = [item.name for item in graph.get_outputs()]
    outputs = dict(zip(names, graph.run(names, given), strict=True))
    caches.update({name.replace("_out", ""): outputs.pop(name) for name in names if "cache" in name})
    return outputs


def call_parts(
    found: Case, feeds: dict[str, Array], keeps: Sequence[int], lengths: Array, caches: dict[str, Array]
) -> list[dict[str, Array]]:
    """Outputs of every part.

    Args:
        feeds: of the first part, but for its slots.
        keeps: visual rows after each cut.
        lengths: [parts, batch]; cache row of each part that the first row takes.
    """
    results: list[dict[str, Array]] = []
    for index, part in enumerate(found.parts):
        if results:
            before = results[-1]
            passed = {**before, **{taken: before[given] for taken, given in PASSED_ON.items() if given in before}}
            feeds = passed
            if found.variant.positions == "reindex":
                kept = passed["position_ids"]
                contiguous = lengths[index].reshape(-1, *[1] * (kept.ndim - 1)) + np.arange(kept.shape[-1])
                feeds["position_ids"] = np.broadcast_to(contiguous, kept.shape)
        if index < len(keeps):
            feeds = {**feeds, "stage2_slots": np.zeros(keeps[index], np.int64)}
        feeds = {**feeds, "write_index": lengths[index]}
        results.append(call(part, feeds, caches))
        check_shapes(found.contracts[index], feeds, results[-1])
    return results


def check_shapes(contract: GraphContract, feeds: dict[str, Array], outputs: dict[str, Array]) -> None:
    """The graph gives what its contract says, in the sizes that follow from those of its inputs."""
    sizes = contract.sizes({name: array.shape for name, array in feeds.items()})
    sizes |= derived_sizes(contract, sizes)
    for spec in contract.outputs:
        if spec.name in outputs:
            assert outputs[spec.name].shape == tuple(sizes.get(str(size), size) for size in spec.shape), spec
            assert outputs[spec.name].dtype == spec.dtype
    assert outputs.keys() == {spec.name for spec in contract.outputs} - {after for _, after in contract.caches}


def run(found: Case, requests: list[Request], keeps: tuple[int, ...], padding: int = 0) -> Run:
    """Prefill and all decode steps, requests together; ``padding`` marks rows that nobody may read."""
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
        "position_ids": positions,
    }
    visual = np.array([int((request.ids == VISUAL_ROW).sum()) for request in requests])
    taken = np.stack([lengths, *(lengths - visual + np.minimum(visual, keep) for keep in keeps)])
    prefill = call_parts(found, feeds, keeps, np.zeros_like(taken), caches)
    logits = [prefill[-1]["logits"]]
    following = np.array([request.positions.max() + 1 for request in requests])
    for step in range(len(requests[0].tokens)):
        feeds = {
            "input_ids": np.array([[request.tokens[step]] for request in requests]),
            "attention_mask": np.ones((batch, 1), np.int64),
            "visual_embeds": rng.standard_normal((batch, 1, WIDTH)).astype(np.float32),
            "position_ids": np.broadcast_to((following + step).reshape(batch, *[1] * (len(axes) + 1)), (batch, *axes, 1)),
        }
        decoded = call_parts(found, feeds, (1,) * len(keeps), taken + step, caches)
        for outputs in decoded[:-1]:
            assert (outputs["kept_rows"] == 0).all() and (outputs["last_row"] == 0).all()
        logits.append(decoded[-1]["logits"])
    return Run(taken, prefill, logits, caches)


def assert_same(found: Array, wanted: Array) -> None:
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE * float(np.abs(wanted).max()))


@pytest.mark.parametrize("keep", [1, KEEP, VISUAL])
@pytest.mark.parametrize("name", VARIANTS)
def test_same_as_transformers(name: str, keep: int) -> None:
    """Prefill and decode of a batch with right padding: rows, positions and logits are those of each request alone."""
    found, requests = batch_of(name)
    keeps = keeps_of(found, keep)
    done = run(found, requests, keeps)
    for index, request in enumerate(requests):
        cuts, logits = expected(found, request, keeps)
        rows, where = len(request.ids), request.positions
        for outputs, cut in zip(done.prefill, cuts, strict=False):
            count = len(cut.kept)
            assert outputs["kept_rows"][index, :count].tolist() == cut.kept
            assert (outputs["kept_rows"][index, count:] >= rows).all()  # padding, behind all that is real
            assert outputs["last_row"][index] == count - 1
            np.testing.assert_array_equal(outputs["kept_position_ids"][index, ..., :count], where[..., cut.kept])
            assert_same(outputs["hidden_states"][index, :count], cut.hidden)
            reindexed = np.broadcast_to(np.arange(count), (*where.shape[:-1], count))
            rows, where = count, where[..., cut.kept] if found.variant.positions == "keep" else reindexed
        newlines = np.flatnonzero(request.ids == NEWLINE_ROW).tolist()
        assert len(newlines) == (3 if found.variant.newline else 0) and set(newlines) <= set(cuts[0].kept)
        assert_same(np.stack([step[index] for step in done.logits]), logits)


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if len(variant.cuts) > 1])
def test_a_part_is_told_which_of_its_rows_are_visual(name: str) -> None:
    found, requests = batch_of(name)
    keeps = keeps_of(found, KEEP)
    first, *middle, last, _ = run(found, requests, keeps).prefill
    assert "kept_visual_rows" not in last  # the part after it drops none
    assert [outputs["kept_visual_rows"].shape[1] for outputs in middle] == list(keeps[1:-1])
    for index, request in enumerate(requests):
        kept = first["kept_rows"][index]
        wanted = [place for place, row in enumerate(kept) if row < len(request.ids) and request.ids[row] == VISUAL_ROW]
        assert first["kept_visual_rows"][index].tolist() == wanted and len(wanted) == KEEP


@pytest.mark.parametrize("name", VARIANTS)
def test_text_prompts(name: str) -> None:
    """One dummy row of visual_embeds, nothing to drop."""
    found = case(name)
    rng = np.random.default_rng(3)
    requests = [replace(random_request(found, rng, visual=0), tokens=(1, 2)) for _ in range(2)]
    ones = keeps_of(found, 1)
    done = run(found, requests, ones)
    for index, request in enumerate(requests):
        _, logits = expected(found, request, ones)
        for outputs in done.prefill[:-1]:
            assert outputs["kept_rows"][index].tolist() == list(range(done.lengths.max()))
        assert_same(np.stack([step[index] for step in done.logits]), logits)


@pytest.mark.parametrize("name", VARIANTS)
def test_batch_and_padding_change_nothing(name: str) -> None:
    """Alone or together, whatever the padding holds, the caches get the same rows."""
    found, requests = batch_of(name)
    keeps = keeps_of(found, KEEP)
    together = run(found, requests, keeps, padding=4)
    for index, request in enumerate(requests):
        alone = run(found, [request], keeps)
        for ours, theirs in zip(together.prefill[:-1], alone.prefill[:-1], strict=True):
            count = theirs["kept_rows"].shape[1]
            np.testing.assert_array_equal(ours["kept_rows"][index, :count], theirs["kept_rows"][0])
            assert_same(ours["hidden_states"][index, :count], theirs["hidden_states"][0])
        for mine, single in zip(together.logits, alone.logits, strict=True):
            assert_same(mine[index], single[0])
        for cache_name, rows in alone.caches.items():
            part = np.searchsorted(found.variant.cuts, int(cache_name.split(".")[1]), side="right")
            used = len(request.tokens) + int(alone.lengths[part, 0])
            assert_same(together.caches[cache_name][index, :, :used], rows[0, :, :used])


@pytest.mark.parametrize("name", ["vicuna_newlines", "mistral_newlines"])
def test_newline_rows_take_the_learned_row(name: str) -> None:
    """As many newlines as one likes, more than visual rows, none of which stage 2 may count or drop."""
    found = case(name)
    ids = np.array([3, *[NEWLINE_ROW] * 4, VISUAL_ROW, NEWLINE_ROW, VISUAL_ROW, VISUAL_ROW, NEWLINE_ROW, 5], np.int64)
    embeds = np.random.default_rng(7).standard_normal((3, WIDTH)).astype(np.float32)
    request = Request(ids, np.arange(len(ids)), embeds)
    kept = run(found, [request], (1,)).prefill[0]["kept_rows"][0].tolist()
    assert len(kept) == len(ids) - 2 and kept == expected(found, request, (1,))[0][0].kept
    # The same rows as visual ones, where nothing is dropped, give the same hidden states.
    as_visual = Request(
        np.where(ids == NEWLINE_ROW, VISUAL_ROW, ids),
        request.positions,
        embedded(found, request)[0, 1:-1].detach().numpy(),
    )
    hidden = run(found, [request], (3,)).prefill[0]["hidden_states"]
    assert_same(hidden, run(found, [as_visual], (9,)).prefill[0]["hidden_states"])


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
        stage2=LastToken().build,
    )
    bind(plain, {f"model.{key}": weight.numpy() for key, weight in found.model.state_dict().items()})
    hidden = run(found, [text], (VISUAL,)).prefill[0]["hidden_states"]
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
        other = run(found, [replace(text, positions=moved)], (VISUAL,)).prefill[0]["hidden_states"]
        assert np.abs(other - hidden)[:, 2:].max() > 1e-2
        assert_same(other, expected(found, replace(text, positions=moved), (VISUAL,))[0][0].hidden[None])


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
