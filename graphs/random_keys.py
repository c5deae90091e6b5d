"""Random numbers that are the same on every engine: of a seed and a few words, by whole numbers alone.

A number is stirred by x -> x ** 5 mod M, which permutes 0 .. M - 1 since 5 has no divisor in common with M - 1:

    x = seed mod (M - 1) + 1; for each word w: x = ((x + w + 1) mod M) ** 5 mod M
    twice: x = ((x + 10368889) mod M) ** 5 mod M; key = x // 128

A seed is taken modulo M - 1, floored.  Source: [choice]; permutation polynomials of prime fields.
"""

from __future__ import annotations

import onnx_ir as ir

from sts_export.graphs.layers import Op
from sts_export.graphs.needs import SEEDS

_MODULUS = (1 << 31) - 1  # a prime; products of two residues fit into int64
_OFFSET = 10368889
_ROUNDS = 2
_SCALE = 128  # keys are below 2 ** 24, which float32 counts exactly


def random_keys(op: Op, seed: ir.Value, *words: ir.Value | int) -> ir.Value:
    """Keys of 0 .. 2 ** 24 - 1 as float32, of the common shape of seed and words.

    Args:
        seed: int64, of any size and sign; at least one axis.
        words: int64 of shapes that broadcast with the seed's, each from 0 to 2 ** 31.
    """
    modulus, one = op.Constant(value_int=_MODULUS), op.Constant(value_int=1)
    added = [op.Constant(value_int=word + 1) if isinstance(word, int) else op.Add(word, one) for word in words]
    places = _places(op, [seed, *added])

    def residue(x: ir.Value) -> ir.Value:
        # Read by its places: TensorRT's builder follows whole numbers through arithmetic alone, and x stands in x ** 5 five
        # times, in the fifth round 3125 times.
        return op.GatherElements(op.Mod(x, modulus), places, axis=-1)

    def stirred(x: ir.Value, added: ir.Value) -> ir.Value:
        x = residue(op.Add(x, added))
        square = residue(op.Mul(x, x))
        return residue(op.Mul(residue(op.Mul(square, square)), x))

    x = op.Add(op.Mod(seed, op.Constant(value_int=SEEDS)), one)
    x = op.Expand(x, op.Shape(places))
    for word in added:
        x = stirred(x, word)
    for _ in range(_ROUNDS):
        x = stirred(x, op.Constant(value_int=_OFFSET))
    return op.Cast(op.Div(x, op.Constant(value_int=_SCALE)), to=ir.DataType.FLOAT)


def _places(op: Op, values: list[ir.Value]) -> ir.Value:
    """0, 1, ... along the last axis of the common shape of the values, int64."""
    whole = values[0]
    for value in values[1:]:
        whole = op.Add(whole, value)
    shape = op.Shape(whole)
    count = op.Squeeze(op.Shape(whole, start=-1))
    return op.Expand(op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1)), shape)
