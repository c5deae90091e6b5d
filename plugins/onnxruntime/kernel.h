// One node of a session: created with it, called by its runs.
#pragma once

#include "custom_operator.h"

namespace sts::onnxruntime {

// kernel: a new one, for destroyKernel; nullptr where an error is returned: the attribute is missing or out of range, or types or shapes that the graph
// tells do not fit.
OrtStatusPtr createKernel(CustomOperator const& custom, OrtApi const& api, OrtKernelInfo const& info, void*& kernel) noexcept;

// Runs the operator: on the CPU it returns when done, on a GPU when all is enqueued.  An error if types or sizes do not fit.
OrtStatusPtr compute(void* kernel, OrtKernelContext* context) noexcept;

void destroyKernel(void* kernel) noexcept;

}  // namespace sts::onnxruntime
