"""What a contract is, and those of tower and selector: inputs and outputs of the graphs, written once.

The graphs, the manifest, the engine builders and the runtime all read these.  The decoder's are in ``decoder/contract.py``.
Symbolic dimensions:

    crops      crops of one image, encoded together
    patches    patches of one image (towers that take any resolution)
    windows    attention windows of one image
    tokens     N, visual tokens of one image in the order in which the model reads them
    steps      largest number of tokens that stage 1 keeps of one crop
    kept       min(crops * steps, tokens) rows that leave the selector; the first K of them are the kept tokens
    text       text tokens of a prompt, for a stage 1 that reads them
    batch      requests run together
    sequence   prompt rows of the decoder's first part in prefill (text + kept visual), 1 in decode
    visual     visual rows among them; 1 (a dummy row) in decode and for prompts without image
    visual_keep  visual rows that stage 2 keeps, at most visual; 1 in decode and for prompts without image
    survivors  sequence - visual + visual_keep
    visual_keep_2, survivors_2, ...  the same after each further cut (``sizes``)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from sts_export.graphs.configs import Dtype
from sts_export.graphs.needs import GRID, SEED, TEXT

# Stands in input_ids for a row of visual_embeds.  Not the image token's own id: a model may generate that one, and then
# it is a token like any other.
VISUAL_ROW = -1
# Stands in input_ids for the learned row that ends every row of a tiled picture (LLaVA-NeXT).
NEWLINE_ROW = -2
# Input of a decoder part -> the output of the part before that it takes where the host feeds none; others bear one name, which
# no graph can have for an input and an output.
PASSED_ON = {
    "position_ids": "kept_position_ids",
    "visual_rows": "kept_visual_rows",
    "entering_hidden_states": "hidden_states",
    "entering_last_row": "last_row",
}


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape (integers and symbols) and dtype of one graph input or output."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    @property
    def is_float(self) -> bool:
        return self.dtype in ("float32", "float16", "bfloat16")

    @property
    def may_be_absent(self) -> bool:
        """One row of zeros stands for the visual rows of a prompt without pictures, and of a token."""
        return self.is_float and "visual" in self.shape


@dataclass(frozen=True)
class GraphContract:
    """Ordered inputs and outputs of one graph.

    ``caches`` pairs each KV-cache input with the output that must be bound to the same buffer.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    caches: tuple[tuple[str, str], ...] = field(default=())

    def input(self, name: str) -> TensorSpec:
        return next(spec for spec in self.inputs if spec.name == name)

    @property
    def own_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs but for the caches."""
        caches = {before for before, _ in self.caches}
        return tuple(spec for spec in self.inputs if spec.name not in caches)

    @property
    def own_outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs but for the caches."""
        caches = {after for _, after in self.caches}
        return tuple(spec for spec in self.outputs if spec.name not in caches)

    def sizes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Symbolic dimension -> its size.

        Args:
            shapes: of inputs, by name.
        """
        known = [(spec.shape, shapes[spec.name]) for spec in self.inputs if spec.name in shapes]
        pairs = (pair for ours, theirs in known for pair in zip(ours, theirs, strict=True))
        return {symbol: size for symbol, size in pairs if isinstance(symbol, str)}


def selector_contract(
    features: Sequence[TensorSpec], hidden_size: int, dtype: Dtype, needs: Set[str] = frozenset(), *, merges: bool = False
) -> GraphContract:
    """Features of one image -> its kept tokens and their embeddings.

    Args:
        features: outputs of the vision encoder: visual_features, and what else stage 1 needs of it.
        needs: of stage 1 (``graphs.needs``).
        merges: stage 1 merges what it drops into what it keeps.

    Inputs:
        visual_features: [crops, rows, width]; then what else stage 1 needs, such as cls_attention: [crops, rows] float32
        token_order: [tokens] int64; the feature row (counted over all crops) of each token that the model reads, in
            reading order.  Rows that are not in it (padding around the picture) are no candidates
        quota: [crops, steps] bool; quota[c, s] is true for s < K of crop c
        text_ids: [text] int64, if stage 1 reads the prompt; its text tokens
        seed: [1] int64, if stage 1 draws; the request's
        grid_columns: [1] int64, if stage 1 looks at neighbours; columns of each crop's grid
    Outputs:
        kept_index: [kept] int64; positions in token_order; of them the first K (the sum of quota) are kept.  They are in the
            order of the prompt: ascending, unless stage 1 says otherwise.  CLS tokens come first, c - crops for that of crop c
        visual_embeds: [kept, hidden]; their embeddings
        merged_into: [tokens] int64, if stage 1 merges; the position that each token was merged into, -1 for none
    """
    inputs = (
        *features,
        TensorSpec("token_order", ("tokens",), "int64"),
        TensorSpec("quota", ("crops", "steps"), "bool"),
        *(TensorSpec(name, shape, "int64") for need, (name, shape) in _OF_REQUEST.items() if need in needs),
    )
    outputs = [TensorSpec("kept_index", ("kept",), "int64"), TensorSpec("visual_embeds", ("kept", hidden_size), dtype)]
    if merges:
        outputs.append(TensorSpec("merged_into", ("tokens",), "int64"))
    return GraphContract("selector", inputs, tuple(outputs))


# Need of stage 1 -> the selector's input for it.
_OF_REQUEST: Mapping[str, tuple[str, tuple[int | str, ...]]] = {
    TEXT: ("text_ids", ("text",)),
    SEED: ("seed", (1,)),
    GRID: ("grid_columns", (1,)),
}
