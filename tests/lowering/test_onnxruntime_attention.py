"""Graphs with ONNX Runtime's own attention operators against the same graphs as they lie in the bundle."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from sts_export.graphs.configs import DecoderConfig, Dtype
from sts_export.graphs.contracts import NEWLINE_ROW, VISUAL_ROW
from sts_export.graphs.decoder.part import decoder_part
from sts_export.graphs.decoder.parts import decoder_parts
from sts_export.lowering.onnxruntime_attention import CONTRIB
from sts_export.lowering.onnxruntime_graph import for_onnxruntime
from sts_export.pruning.stage2.last_token import LastToken, ScoreLayer
from tests.graphs.onnx_models import bind, operators, random_weights, serialized

Array = NDArray[Any]
LAYERS, WIDTH, HEADS, HEAD_DIM, VOCAB = 4, 32, 4, 8, 40
CAPACITY, POSITIONS = 24, 64
VISUAL, KEEP, TEXT = 6, 2, 7
# Of each output, relative to its largest magnitude.  float16: a few units in the last place after four layers.
TOLERANCE = {"float32": 1e-5, "float16": 4e-3}
MARK = 7.0  # in the rows of a cache that no call has written yet


@dataclass(frozen=True)
class Variant:
    """A decoder and where it is split."""

    kv_heads: int = 2
    prune_layer: int = 2
    score_layer: ScoreLayer = "own"
    mrope: bool = False
    newline: bool = False
    head_dim: int = HEAD_DIM
    capacity: int = CAPACITY

    def graphs(self, dtype: Dtype = "float32") -> dict[str, bytes]:
        """llm_lower and llm_upper with random weights."""
        config = DecoderConfig(
            WIDTH,
            48,
            LAYERS,
            HEADS,
            self.kv_heads,
            self.head_dim,
            VOCAB,
            1e-5,
            10000.0,
            attention_bias=self.mrope,
            mrope_section=(1, 2, 1) if self.mrope else (),
        )
        graphs = {}
        for part in decoder_parts(LAYERS, (self.prune_layer,)):
            model = decoder_part(
                config,
                part,
                dtype,
                prefix="model",
                head_name="lm_head",
                capacity=self.capacity,
                positions=max(POSITIONS, self.capacity),
                stage2=LastToken().build,
                needs=LastToken(score_layer=self.score_layer).needs,
                with_newline=self.newline,
            )
            bind(model, random_weights(model, seed=part.index))
            graphs[part.name] = serialized(model)
        return graphs


VARIANTS = {
    "gqa": Variant(),
    "mha": Variant(kv_heads=4),
    "mqa": Variant(kv_heads=1),
    "first": Variant(prune_layer=1, score_layer="next"),
    "last": Variant(prune_layer=LAYERS - 1, newline=True),
    "last-next": Variant(kv_heads=4, prune_layer=LAYERS - 1, score_layer="next"),
    "qwen": Variant(mrope=True),
    "qwen-first": Variant(kv_heads=1, prune_layer=1, score_layer="next", mrope=True),
    "wide-heads": Variant(head_dim=64, capacity=720),
}


@cache
def pair(name: str, dtype: Dtype = "float32") -> dict[str, tuple[bytes, bytes]]:
    """Graph -> as exported, and rewritten."""
    graphs = VARIANTS[name].graphs(dtype)
    return {graph: (content, for_onnxruntime(content, HEADS, "cpu")) for graph, content in graphs.items()}


class Bound:
    """A session with its caches bound in place, as the backend does it."""

    def __init__(self, graph: bytes, batch: int, fill: float = MARK) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._outputs = [item.name for item in self._session.get_outputs() if "cache" not in item.name]
        self.buffers: dict[str, Any] = {}
        for item in self._session.get_inputs():
            if "cache" in item.name:
                dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[item.type]
                buffer = ort.OrtValue.ortvalue_from_numpy(np.full((batch, *item.shape[1:]), fill, dtype))
                self.buffers[item.name] = buffer
                self._binding.bind_ortvalue_input(item.name, buffer)
                self._binding.bind_ortvalue_output(item.name.replace("_cache.", "_cache_out."), buffer)

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Outputs without caches; ``caches`` has those."""
        for name, array in feeds.items():
            self._binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._outputs:
            self._binding.bind_output(name)
        before = {name: buffer.data_ptr() for name, buffer in self.buffers.items()}
        self._session.run_with_iobinding(self._binding)
        values = self._binding.get_outputs()
        caches = values[: len(self.buffers)]  # bound first
        assert [value.data_ptr() for value in caches] == list(before.values())
        assert before == {name: buffer.data_ptr() for name, buffer in self.buffers.items()}
        results = [value.numpy() for value in values[-len(self._outputs) :]]
        return dict(zip(self._outputs, results, strict=True))

    def caches(self) -> dict[str, Array]:
        return {name: buffer.numpy().copy() for name, buffer in self.buffers.items()}


class Both:
    """The graph as exported and rewritten, on the same feeds: everything must be the same."""

    def __init__(self, graphs: tuple[bytes, bytes], batch: int, tolerance: float) -> None:
        self.plain, self.fused = (Bound(graph, batch) for graph in graphs)
        self.tolerance = tolerance
        assert self.plain.buffers.keys() == self.fused.buffers.keys() and self.fused.buffers

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        wanted, found = self.plain.run(feeds), self.fused.run(feeds)
        for name, array in wanted.items():
            self.assert_same(found[name], array, name)
        rows = feeds["position_ids"].shape[-1]
        plain, fused = self.plain.caches(), self.fused.caches()
        for name, cache_rows in plain.items():
            self.assert_same(fused[name], cache_rows, name)
            for request, first in enumerate(feeds["write_index"]):
                assert not (fused[name][request, :, first : first + rows] == MARK).all(axis=-1).any(), name
            np.testing.assert_array_equal(fused[name] == MARK, cache_rows == MARK, name)
        return found

    def assert_same(self, found: Array, wanted: Array, name: str) -> None:
        assert found.dtype == wanted.dtype and found.shape == wanted.shape, name
        if wanted.dtype.kind == "i":
            np.testing.assert_array_equal(found, wanted, name)
            return
        found, wanted = found.astype(np.float64), wanted.astype(np.float64)
        assert np.isfinite(found).all() and np.abs(found - wanted).max() <= self.tolerance * np.abs(wanted).max(), name


def positions_of(found: Variant, rows: Array) -> Array:
    """[batch, rows] -> position_ids; with M-RoPE three different ones a row."""
    return np.stack([rows, rows // 2, rows // 3 + 1], axis=1) if found.mrope else rows


def prompt(found: Variant, lengths: Array, dtype: Dtype, seed: int = 0) -> dict[str, Array]:
    """Feeds of a prefill: VISUAL visual rows and text, padded on the right with anything."""
    rng = np.random.default_rng(seed)
    batch, longest = len(lengths), int(lengths.max())
    ids = rng.integers(0, VOCAB, (batch, longest))
    for request in range(batch):
        first = int(rng.integers(0, lengths[request] - VISUAL - 1))
        ids[request, first : first + VISUAL] = VISUAL_ROW
        if found.newline:
            ids[request, first + VISUAL] = NEWLINE_ROW
    return {
        "input_ids": ids,
        "attention_mask": (np.arange(longest) < lengths[:, None]).astype(np.int64),
        "visual_embeds": rng.standard_normal((batch, VISUAL, WIDTH)).astype(dtype),
        "stage2_slots": np.zeros(KEEP, np.int64),
        "position_ids": positions_of(found, np.tile(np.arange(longest), (batch, 1))),
        "write_index": np.zeros(batch, np.int64),
    }


def step(found: Variant, write_index: Array, dtype: Dtype, rows: int = 1) -> dict[str, Array]:
    """Feeds of a decode step: other requests stand in other rows of the caches."""
    batch = len(write_index)
    return {
        "input_ids": np.random.default_rng(int(write_index.sum())).integers(0, VOCAB, (batch, rows)),
        "attention_mask": np.ones((batch, rows), np.int64),
        "visual_embeds": np.zeros((batch, 1, WIDTH), dtype),
        "stage2_slots": np.zeros(1, np.int64),
        "position_ids": positions_of(found, write_index[:, None] + np.arange(rows)),
        "write_index": write_index,
    }


def upper_feeds(lower: dict[str, Array], write_index: Array) -> dict[str, Array]:
    feeds = {name: lower[name] for name in ("hidden_states", "last_row")}
    return {**feeds, "position_ids": lower["kept_position_ids"], "write_index": write_index}


def compare(name: str, lengths: Array, dtype: Dtype = "float32", steps: int | None = None) -> None:
    """Prefill and decode steps through both graphs; None decodes until the longest request fills its cache."""
    found, graphs = VARIANTS[name], pair(name, dtype)
    batch, survivors = len(lengths), lengths - VISUAL + KEEP
    lower = Both(graphs["llm_lower"], batch, TOLERANCE[dtype])
    upper = Both(graphs["llm_upper"], batch, TOLERANCE[dtype])
    upper.run(upper_feeds(lower.run(prompt(found, lengths, dtype)), np.zeros(batch, np.int64)))
    for count in range(found.capacity - int(lengths.max()) if steps is None else steps):
        rows = lower.run(step(found, lengths + count, dtype))
        upper.run(upper_feeds(rows, survivors + count))


@pytest.mark.parametrize("lengths", [[TEXT + VISUAL], [VISUAL + 3, VISUAL + TEXT, VISUAL + 4]], ids=["one", "padded"])
@pytest.mark.parametrize("name", VARIANTS)
def test_same_outputs_and_caches(name: str, lengths: list[int]) -> None:
    """Prefill, then four steps of requests that stand in different rows."""
    compare(name, np.array(lengths), steps=4)


@pytest.mark.parametrize("name", ["gqa", "mha", "mqa", "qwen"])
def test_float16(name: str) -> None:
    compare(name, np.array([VISUAL + 3, VISUAL + TEXT]), "float16", steps=3)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_long_prompts(dtype: Dtype) -> None:
    """The kernels work in tiles: many of them, and one that is not full."""
    compare("wide-heads", np.array([650, 301]), dtype, steps=2)


@pytest.mark.parametrize("lengths", [[CAPACITY - 3], [CAPACITY - 3, VISUAL + 3], [CAPACITY]], ids=str)
def test_to_the_last_row_of_the_cache(lengths: list[int]) -> None:
    """A prompt of the whole capacity, or steps until it is full."""
    compare("gqa", np.array(lengths))


def test_a_row_beyond_the_cache_is_an_error() -> None:
    """Not a write outside the buffer."""
    found, (_, fused) = VARIANTS["gqa"], pair("gqa")["llm_lower"]
    session = Bound(fused, 1)
    with pytest.raises(Exception, match="GroupQueryAttention"):
        session.run(step(found, np.array([CAPACITY]), "float32"))


def test_several_rows_after_the_prompt() -> None:
    """A prompt in pieces, one request."""
    found, (_, fused) = VARIANTS["gqa"], pair("gqa")["llm_lower"]
    both = Both(pair("gqa")["llm_lower"], 1, TOLERANCE["float32"])
    rng = np.random.default_rng(3)
    rows = {**step(found, np.array([0]), "float32", 9), "input_ids": rng.integers(0, VOCAB, (1, 9))}
    both.run({**rows, "input_ids": rows["input_ids"][:, :4], "attention_mask": np.ones((1, 4), np.int64)} | cut(rows, 0, 4))
    both.run({**rows, **cut(rows, 4, 9)})
    whole = Bound(fused, 1)
    whole.run(rows)
    for name, buffer in both.fused.caches().items():
        np.testing.assert_allclose(buffer, whole.caches()[name], atol=1e-5, rtol=1e-5)


def cut(feeds: dict[str, Array], first: int, last: int) -> dict[str, Array]:
    """Rows ``first`` to ``last`` of the feeds of one request."""
    by_row = {name: feeds[name][..., first:last] for name in ("input_ids", "attention_mask", "position_ids")}
    return {**by_row, "write_index": np.array([first])}


@pytest.mark.parametrize("fill", [np.nan, 1e30])
def test_unwritten_rows_are_not_read(fill: float) -> None:
    """Whatever lies behind the used rows has no influence: the reason why this attention is faster."""
    found, (_, fused) = VARIANTS["gqa"], pair("gqa")["llm_lower"]
    clean, dirty = Bound(fused, 2, 0.0), Bound(fused, 2, fill)
    lengths = np.array([VISUAL + 3, VISUAL + TEXT])
    for feeds in (prompt(found, lengths, "float32"), step(found, lengths, "float32")):
        wanted = clean.run(feeds)
        for name, array in dirty.run(feeds).items():
            np.testing.assert_array_equal(array, wanted[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_every_cached_layer_is_replaced(name: str) -> None:
    found = VARIANTS[name]
    for graph, layers in (("llm_lower", found.prune_layer), ("llm_upper", LAYERS - found.prune_layer)):
        plain, fused = pair(name)[graph]
        before, after = operators(plain), operators(fused)
        assert before["Attention"] == layers and before["TensorScatter"] == 2 * layers
        assert after[f"{CONTRIB}::GroupQueryAttention"] == layers
        assert "Attention" not in after and "TensorScatter" not in after


@pytest.mark.parametrize("name", VARIANTS)
def test_a_layer_transposes_nothing_and_no_mask_is_left(name: str) -> None:
    """Stage 2 alone takes split heads: a query and a key; M-RoPE's positions are turned once."""
    for graph, (plain, fused) in pair(name).items():
        before, after = operators(plain), operators(fused)
        outside = 2 * (graph == "llm_lower" and VARIANTS[name].mrope)
        scored = 2 * after.get("sts::LastTokenTopK", 0)
        assert before["Transpose"] >= 4 * before["Attention"] and after.get("Transpose", 0) <= outside + scored, graph
        assert "LessOrEqual" in before and not {"LessOrEqual", "Range"} & after.keys()


def test_interface_stays() -> None:
    """Names, order, types and shapes of inputs and outputs, opset and functions."""
    for plain, fused in pair("qwen").values():
        before, after = onnx.load_from_string(plain), onnx.load_from_string(fused)
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        opsets = {item.domain: item.version for item in before.opset_import}
        assert {item.domain: item.version for item in after.opset_import} == {**opsets, CONTRIB: 1}
        assert [function.name for function in after.functions] == [function.name for function in before.functions]
        onnx.checker.check_model(after)


@pytest.mark.parametrize("name", ["gqa", "first", "qwen", "last"])
def test_onnxruntime_warns_of_nothing(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither when the session is made nor when it runs."""
    found, graphs = VARIANTS[name], pair(name)
    lengths = np.array([VISUAL + 3, VISUAL + TEXT])
    lower, upper = (Bound(graphs[graph][1], 2) for graph in ("llm_lower", "llm_upper"))
    upper.run(upper_feeds(lower.run(prompt(found, lengths, "float32")), np.zeros(2, np.int64)))
    upper.run(upper_feeds(lower.run(step(found, lengths, "float32")), lengths - VISUAL + KEEP))
    assert capfd.readouterr() == ("", "")


def test_cached_attention_with_other_heads_is_left_alone() -> None:
    """GroupQueryAttention takes no heads of 12."""
    graph = Variant(head_dim=12).graphs()["llm_upper"]
    before, after = operators(graph), operators(for_onnxruntime(graph, HEADS, "cpu"))
    assert before["Attention"] == after["Attention"] and before["TensorScatter"] == after["TensorScatter"]


def test_a_graph_without_attention_is_left_alone() -> None:
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    node = ir.Node("", "Relu", [value])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", value.type, value.shape
    model = ir.Model(ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": 24}, name="g"), ir_version=11)
    graph = serialized(model)
    assert for_onnxruntime(graph, 2, "cpu") is graph


@pytest.mark.parametrize("name", ["gqa", "mha", "qwen", "last-next"])
def test_cuda_takes_group_query_attention_in_half_precision_only(name: str) -> None:
    """ONNX Runtime has no float32 kernel of it for CUDA: on a GPU, the node would run on the CPU."""
    for dtype in ("float16", "bfloat16"):
        for graph, content in VARIANTS[name].graphs(dtype).items():
            before, after = operators(content), operators(for_onnxruntime(content, HEADS, "cuda"))
            assert after[f"{CONTRIB}::GroupQueryAttention"] == before["Attention"]
            assert "Attention" not in after and "TensorScatter" not in after, graph
    for content in VARIANTS[name].graphs("float32").values():
        before, after = operators(content), operators(for_onnxruntime(content, HEADS, "cuda"))
        assert before["Attention"] == after["Attention"] and f"{CONTRIB}::GroupQueryAttention" not in after


def test_cuda_and_cpu_take_the_same_form_in_float16() -> None:
    """So what the tests above say of the CPU's operators in float16 is said of the graph that CUDA gets."""
    for plain, fused in pair("gqa", "float16").values():
        assert for_onnxruntime(plain, HEADS, "cuda") == fused
