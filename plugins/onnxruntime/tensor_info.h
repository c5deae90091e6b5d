// Types and dimensions of an operator's tensors, as ONNX Runtime describes them.
#pragma once

#include "onnxruntime.h"
#include "sizes.h"

namespace sts::onnxruntime {

struct TensorInfo {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;  // undefined: not known
  size_t rank = 0;
  int64_t dims[kMaxRank]{};  // of the first kMaxRank axes; kUnknown where a graph does not say
};

// False with the reason.
bool readInfo(OrtApi const& api, Operator const& op, OrtTensorTypeAndShapeInfo const* from, TensorInfo& info, Reason& reason) noexcept;

// Whether an input may have this type; one that is not known may.  types: of the operator's inputs before it.  False with the reason.
bool checkType(Operator const& op, int32_t input, ONNXTensorElementDataType type, TensorInfo const* before, Reason& reason) noexcept;

// type: one that checkType accepts for floats, and known.
DataType kernelType(ONNXTensorElementDataType type) noexcept;

}  // namespace sts::onnxruntime
