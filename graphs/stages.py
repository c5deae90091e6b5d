"""What the graphs hand to a pruning stage, and what they take from it.

A stage is a function that adds nodes.  The graphs know no stage by name: whoever builds them passes the functions in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.graphs.layers import Op


@dataclass(frozen=True)
class Stage1Inputs:
    """The crops of one image, before the LLM.

    Args:
        features: [crops, rows, width], the tower's features.
        candidates: [crops, rows] bool; rows that may be chosen.
        quota: [crops, steps] bool; quota[c, s] is true for s < K of crop c.
        max_crops, max_rows: the most crops of an image and the most rows of a crop that the graph will be given.
        tower: what else the stage needs of the tower, by name, such as ``cls_attention``: [crops, rows] float32.
        projected: [crops, rows, hidden], all rows as the LLM would take them.
        text: [text, hidden], embeddings of the prompt's text tokens.
        seed: [1] int64, the request's.
        columns: [1] int64; row r of a crop lies in row r // columns and column r % columns of its grid.

    The last four are None where the stage does not need them (``graphs.needs``).
    """

    features: ir.Value
    candidates: ir.Value
    quota: ir.Value
    max_crops: int
    max_rows: int
    tower: Mapping[str, ir.Value] = field(default_factory=dict)
    projected: ir.Value | None = None
    text: ir.Value | None = None
    seed: ir.Value | None = None
    columns: ir.Value | None = None


@dataclass(frozen=True)
class Stage1Choice:
    """What a stage before the LLM chose.

    Args:
        chosen: [crops, steps] int64, rows of each crop; only those within its quota count, and these differ.  A stage that
            needs ``cls_features`` chooses a crop's CLS token by the number of its rows.
        features: [crops, rows, width] in place of the tower's, for a stage that merges dropped rows into kept ones; None
            leaves them as they are.
        joined: [crops, rows] int64, for such a stage: the row of its crop that each row was merged into; -1 for none.
        last: [crops, steps] bool; choices that stand behind all others in the prompt.  None: all are in reading order.
    """

    chosen: ir.Value
    features: ir.Value | None = None
    joined: ir.Value | None = None
    last: ir.Value | None = None


@dataclass(frozen=True)
class Stage2Inputs:
    """The rows of one call of the decoder's lower part.

    Args:
        query: [batch, heads, rows, head_dim], rotated; of the last layer before the stage, or of the next one.
        key: [batch, kv_heads, rows, head_dim], rotated; of the same layer.
        attention_mask: [batch, rows] int64, 1 for real tokens.
        visual_mask: [batch, rows] bool, visual rows.
        visual_embeds: [batch, visual, hidden]; its length tells how many visual rows a request has.
        stage2_slots: [visual_keep] int64; only its length is read, K' <= visual.
        scale: of attention's products, 1 / sqrt(head_dim).
        text_rows: [batch, rows] bool; text, neither picture (newlines included) nor padding.
        final_hidden: [batch, rows, hidden]; what enters the layer after the stage, after the decoder's final norm.
        seed: [batch] int64, the request's.

    The last three are None where the stage does not need them (``graphs.needs``).
    """

    query: ir.Value
    key: ir.Value
    attention_mask: ir.Value
    visual_mask: ir.Value
    visual_embeds: ir.Value
    stage2_slots: ir.Value
    scale: float
    text_rows: ir.Value | None = None
    final_hidden: ir.Value | None = None
    seed: ir.Value | None = None


Stage1Builder = Callable[["Op", Stage1Inputs], Stage1Choice]
# kept_rows: [batch, rows - visual + visual_keep] int64, ascending; last_row: [batch] int64, the last real token among them.
Stage2Builder = Callable[["Op", Stage2Inputs], "tuple[ir.Value, ir.Value]"]
