#include "tensor_info.h"

#include <algorithm>

#include "status.h"

namespace sts::onnxruntime {
namespace {

bool accepts(Types types, ONNXTensorElementDataType type) noexcept {
  switch (types) {
    case Types::kFloats:
      return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ||
             type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case Types::kInt64: return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case Types::kBool: return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
  }
  return false;
}

char const* nameOf(Types types) noexcept {
  switch (types) {
    case Types::kFloats: return "float32, float16 or bfloat16";
    case Types::kInt64: return "int64";
    case Types::kBool: return "bool";
  }
  return "";
}

}  // namespace

bool readInfo(OrtApi const& api, Operator const& op, OrtTensorTypeAndShapeInfo const* from, TensorInfo& info, Reason& reason) noexcept {
  return succeeded(api, api.GetTensorElementType(from, &info.type), op, reason) &&
         succeeded(api, api.GetDimensionsCount(from, &info.rank), op, reason) &&
         succeeded(api, api.GetDimensions(from, info.dims, std::min<size_t>(info.rank, kMaxRank)), op, reason);
}

bool checkType(Operator const& op, int32_t input, ONNXTensorElementDataType type, TensorInfo const* before, Reason& reason) noexcept {
  Port const& port = op.ports[input];
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED) return true;
  if (!accepts(port.types, type)) {
    reason.say("sts::%s: %s must be %s", op.name, port.name, nameOf(port.types));
    return false;
  }
  if (port.sameTypeAs < 0 || before[port.sameTypeAs].type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED || before[port.sameTypeAs].type == type)
    return true;
  reason.say("sts::%s: %s must have the type of %s", op.name, port.name, op.ports[port.sameTypeAs].name);
  return false;
}

DataType kernelType(ONNXTensorElementDataType type) noexcept {
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) return DataType::kHalf;
  return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 ? DataType::kBfloat16 : DataType::kFloat;
}

}  // namespace sts::onnxruntime
