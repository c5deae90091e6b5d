"""What a pruning stage may ask for beside its usual inputs, by name.

A stage before the LLM may need of the vision tower, where it gives that (each is an output of the encoder):

    cls_attention               [crops, rows] float32; attention of CLS to each row in the feature layer, mean over heads
    early_cls_attention         the same in an early layer, a quarter of the way
    received_attention          [crops, rows] float32; what each row receives in the feature layer (towers without CLS: in
                                the last layer with full attention), mean over heads and querying rows
    early_received_attention    the same in an early layer, a quarter of the way
    middle_received_attention   the same in a middle layer
    mean_keys                   [crops, rows, head_dim] float32; key projection of that layer, mean over heads
    cls_features                [crops, width]; the CLS token of the feature layer, which the stage may choose, too

and of the selector, always there:

    projected                   [crops, rows, hidden]; all rows as the LLM would take them
    text                        [text, hidden]; embeddings of the prompt's text tokens
    seed                        [1] int64; the request's
    grid                        [1] int64; columns of each crop's token grid

A stage inside the LLM may need of its part of the decoder:

    own_query_key, next_query_key   query and key of the last layer before the stage, or of the first one after it
    final_hidden                    [batch, rows, hidden]; what enters that first one, after the decoder's final norm
    text_rows                       [batch, rows] bool; text, neither picture nor padding
    seed                            [batch] int64; the request's
"""

from __future__ import annotations

CLS_ATTENTION, EARLY_CLS_ATTENTION = "cls_attention", "early_cls_attention"
RECEIVED_ATTENTION, EARLY_RECEIVED_ATTENTION = "received_attention", "early_received_attention"
MIDDLE_RECEIVED_ATTENTION = "middle_received_attention"
MEAN_KEYS, CLS_FEATURES = "mean_keys", "cls_features"

PROJECTED, TEXT, GRID = "projected", "text", "grid"
SEED = "seed"
# Seeds that differ by a multiple of it draw the same.
SEEDS = (1 << 31) - 2

OWN_QUERY_KEY, NEXT_QUERY_KEY = "own_query_key", "next_query_key"
FINAL_HIDDEN, TEXT_ROWS = "final_hidden", "text_rows"

# What the selector gives to a stage whatever the tower.
OF_SELECTOR = frozenset({PROJECTED, TEXT, SEED, GRID})
