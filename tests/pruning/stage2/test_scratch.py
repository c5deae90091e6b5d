"""What stages inside the LLM say that they hold, against the tensors of their graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sts_export.graphs.configs import DecoderConfig
from sts_export.pruning.registry import find_stage2, own_stage_names
from tests.pruning.stage2.stage_calls import TEXT, VISUAL, Prompts, stage_feeds, stage_model
from tests.support.held import held_bytes

# Widths in the proportions of a 7B decoder.
DECODER = DecoderConfig(128, 344, 4, 8, 4, 16, 40, 1e-5, 10000.0)
LAYER_OF_A_ROW = (6 * DECODER.hidden_size + 3 * DECODER.intermediate_size) * 2


def held(name: str, rows: int, visual: int) -> int:
    """Bytes beside the inputs, float16; of a prompt with ``visual`` visual rows, 0 for a text prompt with the dummy one."""
    rng = np.random.default_rng(rows)
    kinds = np.full((1, rows), TEXT)
    kinds[:, 2 : 2 + visual] = VISUAL
    heads, kv_heads, dim = DECODER.num_heads, DECODER.num_kv_heads, DECODER.head_dim
    shapes = (1, heads, rows, dim), (1, kv_heads, rows, dim), (1, rows, DECODER.hidden_size)
    query, key, hidden = (rng.standard_normal(shape).astype(np.float16) for shape in shapes)
    prompts = Prompts(kinds, query, key, hidden, seeds=np.zeros(1, np.int64))
    feeds = stage_feeds(prompts, max(1, visual))
    return held_bytes(ir.to_proto(stage_model(find_stage2(name)(), "FLOAT16")), feeds)


@pytest.mark.parametrize("name", own_stage_names("stage2"))
def test_graphs_hold_no_more_than_stages_say(name: str) -> None:
    """Beside that, less than a layer of the decoder does."""
    for rows, visual in ((40, 0), (200, 0), (200, 90)):
        said = find_stage2(name)().scratch_bytes(DECODER, rows)
        found = held(name, rows, visual)
        assert found < said + rows * LAYER_OF_A_ROW
        if not visual:
            assert said <= found
