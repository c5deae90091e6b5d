// An operator as ONNX Runtime's C API wants it: one table of functions per execution provider.
#pragma once

#include "onnxruntime.h"
#include "operator.h"

namespace sts::onnxruntime {

enum class Provider : int32_t { kCpu, kCuda };

struct CustomOperator final : OrtCustomOp {
  CustomOperator(Operator const& definition, Provider where, Runtime const& from) noexcept;

  Operator const& op;
  Provider provider;
  Runtime runtime;
};

}  // namespace sts::onnxruntime
