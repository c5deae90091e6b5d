"""Heads side by side: tensors of attention as [batch, rows, heads * head_dim], the form in which projections give them."""

from __future__ import annotations

import onnx_ir as ir

from sts_export.lowering.rewriter import Rewriter

_SWAP = (0, 2, 1, 3)  # [batch, rows, heads, head_dim] <-> [batch, heads, rows, head_dim]


def side_by_side(rewriter: Rewriter, tensor: ir.Value | None, heads: int) -> ir.Value:
    """[batch, heads, rows, head_dim] as [batch, rows, heads * head_dim], from before it was split where it was."""
    node = tensor.producer() if tensor is not None else None
    if node is not None and node.op_type == "RotaryEmbedding":
        return _rotated(rewriter, node, heads)
    split = _split(tensor)
    if split is not None:
        return rewriter.op("Reshape", split.inputs[0], _without_heads(rewriter, split.inputs[1]))
    turned = rewriter.op("Transpose", tensor, perm=list(_SWAP))
    return rewriter.op("Reshape", turned, rewriter.op("Constant", value_ints=[0, 0, -1]))


def was_side_by_side(tensor: ir.Value | None) -> bool:
    """Whether [batch, heads, rows, head_dim] was split from heads side by side."""
    return _split(tensor) is not None


def _split(tensor: ir.Value | None) -> ir.Node | None:
    """The reshape to [batch, rows, heads, head_dim] that the tensor is the transposition of, with a shape of this project's."""
    turn = tensor.producer() if tensor is not None else None
    if turn is None or turn.op_type != "Transpose" or tuple(turn.attributes["perm"].as_ints()) != _SWAP:
        return None
    split = turn.inputs[0].producer() if turn.inputs[0] is not None else None
    shape = split.inputs[1] if split is not None and split.op_type == "Reshape" else None
    given = shape.producer() if shape is not None else None
    return split if given is not None and given.op_type in ("Constant", "Concat") else None


def _rotated(rewriter: Rewriter, node: ir.Node, heads: int) -> ir.Value:
    """The rotary embedding of heads side by side; whoever else uses that of split heads (stage 2) gets it split afterwards."""
    op, by_head = rewriter.op, node.outputs[0]
    turned = op("RotaryEmbedding", side_by_side(rewriter, node.inputs[0], heads), *node.inputs[1:], num_heads=heads)
    if any(use.node.op_type not in ("Attention", "TensorScatter") for use in by_head.uses()):
        again = op("Reshape", turned, op("Constant", value_ints=[0, 0, heads, -1]))
        ir.convenience.replace_all_uses_with(by_head, op("Transpose", again, perm=list(_SWAP)))
    return turned


def _without_heads(rewriter: Rewriter, shape: ir.Value | None) -> ir.Value:
    """The shape [batch, rows, heads, head_dim] as [batch, rows, heads * head_dim]."""
    node = shape.producer() if shape is not None else None
    assert node is not None
    if node.op_type == "Constant":
        *others, heads, head_dim = node.attributes["value_ints"].as_ints()
        return rewriter.int64([*others, heads * head_dim])
    sizes = node.inputs[0]  # of batch and rows, one vector for all layers
    return rewriter.shared(("side by side", sizes), lambda: rewriter.op("Concat", sizes, rewriter.int64([-1]), axis=0))
