// Which shapes the outputs will have, as far as a graph says.
#pragma once

#include "onnxruntime.h"
#include "operator.h"

namespace sts::onnxruntime {

// Sets the shape of every output whose dimensions all are numbers or have names; the others stay unknown.  A dimension that no input has is named after
// those that it follows from, so that equal names mean equal sizes in the whole graph.
void inferShapes(Operator const& op, OrtApi const& api, OrtShapeInferContext& context) noexcept;

}  // namespace sts::onnxruntime
