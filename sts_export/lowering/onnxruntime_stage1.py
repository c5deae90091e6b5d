"""Stage 1 on CUDA, where no kernel takes its place: which of its forms runs follows from the picture.

A bundle that takes very large pictures has the form that holds little memory, a dozen launches a step.  It has to serve any
engine; some plan for the largest picture.  ONNX Runtime allocates what the present one needs, so its graph asks for the size,
and takes the form with the short step but for the largest.  Both choose the same tokens (pruning/stage1/repulsion.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_NAME, _SHORT_STEPS = "RepulsionSelect", "RepulsionSelectShortSteps"
_STEP = 3  # operators of a short step


def choose_stage1_by_size(model: ir.Model) -> bool:
    """Let a selector with the form by row take the other one where a picture allows it.

    Returns:
        Whether this is such a selector.
    """
    import onnx_ir as ir

    from sts_export.graphs.model import STS_DOMAIN
    from sts_export.lowering.rewriter import Rewriter
    from sts_export.pruning.stage1.repulsion import MATRIX_LIMIT, repulsion_select

    by_row = next((function for function in model.functions.values() if function.name == _NAME), None)
    calls = [node for node in model.graph if (node.domain, node.op_type) == (STS_DOMAIN, _NAME)]
    if by_row is None or not calls or _longest_step(by_row) <= _STEP:
        return False
    short = repulsion_select()
    short.name = _SHORT_STEPS
    model.functions[short.identifier()] = short
    (call,) = calls

    def branch(name: str) -> ir.Graph:
        node = ir.Node(STS_DOMAIN, name, call.inputs, list(call.attributes.values()))
        node.outputs[0].name = f"{call.outputs[0].name}/{name}"
        node.outputs[0].type, node.outputs[0].shape = call.outputs[0].type, call.outputs[0].shape
        return ir.Graph([], node.outputs, nodes=[node], name=name)

    rewriter = Rewriter(model.graph, named=False)
    rewriter.start(call)
    op, features = rewriter.op, call.inputs[0]
    crops, rows = (op("Shape", features, start=axis, end=axis + 1) for axis in range(2))
    pairs = op("Mul", op("Mul", crops, rows), rows)
    fits = op("Squeeze", op("LessOrEqual", pairs, rewriter.int64([MATRIX_LIMIT])))
    branches = {"then_branch": branch(_SHORT_STEPS), "else_branch": branch(_NAME)}
    chosen = ir.node("If", [fits], branches, num_outputs=1)
    model.graph.insert_before(call, chosen)
    rewriter.replace(chosen.outputs[0])
    return True


def _longest_step(function: ir.Function) -> int:
    """Operators in the body of its loop; 0 without one."""
    bodies = [node.attributes["body"].as_graph() for node in function if node.op_type == "Loop"]
    return max((sum(node.op_type not in ("Constant", "Identity") for node in body) for body in bodies), default=0)
