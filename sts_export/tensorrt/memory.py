"""How much GPU memory engines need, estimated from the bundle before anything is built."""

from __future__ import annotations

from dataclasses import dataclass

from sts_export.bundle.manifest import Bundle
from sts_export.dtypes import ELEMENT_TYPES
from sts_export.errors import BackendError
from sts_export.families.capacities import cache_bytes
from sts_export.graphs.needs import PROJECTED, TEXT
from sts_export.graphs.sizes import rows_of_part
from sts_export.tensorrt.device import Gpu
from sts_export.tensorrt.profiles import profiles

_SCORE = 4  # bytes: scores are float32
# CUDA context, libraries and the allocator's rounding.
_FIXED = 512 << 20


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes.

    Args:
        weights: of all graphs.
        caches: of ``max_batch`` requests.
        activations: of the graph that needs most.
        largest: weights of the largest graph: the builder holds them twice, in the network and in the engine.
    """

    weights: int
    caches: int
    activations: int
    largest: int

    @property
    def run(self) -> int:
        """All engines loaded, with caches."""
        return self.weights + self.caches + self.activations + _FIXED

    @property
    def build(self) -> int:
        """The largest engine being built, each in a process of its own."""
        return 2 * self.largest + self.activations + _FIXED


def estimate(bundle: Bundle, max_batch: int, *, fused: bool) -> MemoryEstimate:
    """From weight sizes, cache formula and the widest activations; kernels' own workspaces are not known in advance.

    Args:
        fused: TensorRT has attention and in-place caches; before 10.15 scores are tensors and caches have two buffers.
    """
    manifest = bundle.manifest
    caches = sum(cache_bytes(manifest.model, manifest.pruning, manifest.capacities, manifest.dtype))
    weights = {name: _weight_bytes(bundle, name) for name in manifest.graphs}
    scores = not fused or manifest.dtype == "float32"  # there is no fused kernel in float32
    activations = max(
        _vision_activations(bundle, scores=scores),
        _selection_activations(bundle),
        _decoder_activations(bundle, max_batch, scores=scores),
    )
    copies = max_batch if fused else 2 * max_batch
    return MemoryEstimate(sum(weights.values()), copies * caches, activations, max(weights.values()))


def check_memory(need: MemoryEstimate, gpu: Gpu | None, *, max_batch: int) -> None:
    """Refuse what cannot fit.

    Raises:
        BackendError: with the estimate and ways out.
    """
    if gpu is None:
        return
    asked = max(need.run, need.build)
    if asked > gpu.memory:
        fewer = " a smaller --max-batch," if max_batch > 1 else ""
        raise BackendError(
            f"not enough GPU memory: about {_gb(asked)} are needed ({_gb(need.weights)} weights, {_gb(need.caches)} KV caches, "
            f"{_gb(need.activations)} activations; building takes about {_gb(need.build)}) and {gpu.name} has "
            f"{_gb(gpu.memory)}; take{fewer} a smaller model, a 16-bit --dtype or smaller capacities at export, or another GPU "
            "(--ignore-memory tries anyway)"
        )


def _weight_bytes(bundle: Bundle, name: str) -> int:
    import onnx

    model = onnx.load(str(bundle.graph_file(name)), load_external_data=False)
    total = 0
    for tensor in model.graph.initializer:
        lengths = [int(entry.value) for entry in tensor.external_data if entry.key == "length"]
        total += lengths[0] if lengths else len(tensor.raw_data)
    return total


def _vision_activations(bundle: Bundle, *, scores: bool) -> int:
    """Queries, keys, values and the MLP's inner rows of one layer; a few such tensors live at once.

    Rows of attention that stage 1 needs are computed beside the fused attention.
    """
    vision, item = bundle.manifest.model.vision, ELEMENT_TYPES[bundle.manifest.dtype].itemsize
    tower = bundle.manifest.model.tower
    rows, attended = tower.attention_rows
    of_attention = vision.num_heads * rows * attended * _SCORE if scores else 0
    needed = tower.scratch_bytes(bundle.manifest.pruning.tower_needs)
    return rows * (6 * vision.hidden_size + 2 * vision.intermediate_size) * item + of_attention + needed


def _selection_activations(bundle: Bundle) -> int:
    """What stage 1 holds as it chooses, and rows in the LLM's width that it compares: in float32 and as unit vectors, too."""
    manifest = bundle.manifest
    pruning, tower = manifest.pruning, manifest.model.tower
    if not pruning.drops_before:
        return 0
    rows = tower.max_crops * tower.rows_per_crop if PROJECTED in pruning.stage1_needs else 0
    text = profiles(manifest, "selector", 1)[0]["text"][2] if TEXT in pruning.stage1_needs else 0
    compared = (rows + text) * manifest.model.decoder.hidden_size * (ELEMENT_TYPES[manifest.dtype].itemsize + 2 * _SCORE)
    return pruning.stage1.scratch_bytes(tower.max_crops, tower.rows_per_crop) + compared


def _decoder_activations(bundle: Bundle, max_batch: int, *, scores: bool) -> int:
    """Hidden and inner rows of one layer of the first part, the mask, and the scores over the whole capacity.

    Either one request's prompt or one row of each request passes through at a time.  Stage 2 chooses when attention's scores
    are no longer held.
    """
    manifest = bundle.manifest
    decoder, item, first = manifest.model.decoder, ELEMENT_TYPES[manifest.dtype].itemsize, manifest.pruning.parts[0]
    sizes = profiles(manifest, first.name, max_batch)
    rows = max(profile["batch"][2] * profile[rows_of_part(first.index)][2] for profile in sizes)
    columns = manifest.capacities.rows[first.index]
    of_attention = decoder.num_heads * rows * columns * _SCORE if scores else 0
    of_stage2 = manifest.pruning.stage2.scratch_bytes(decoder, columns)
    return rows * ((6 * decoder.hidden_size + 3 * decoder.intermediate_size) * item + columns) + max(of_attention, of_stage2)


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB"
