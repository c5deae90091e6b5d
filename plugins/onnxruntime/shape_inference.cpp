#include "shape_inference.h"

#include <cstdio>

#include "status.h"
#include "tensor_info.h"

namespace sts::onnxruntime {
namespace {

constexpr size_t kLongestName = 256;

struct Dimensions {
  Sizes sizes;
  char const* names[kMaxSizes]{};  // of sizes that are no numbers; nullptr: unknown, too
  char deduced[kLongestName];
};

// False: something does not fit, or the runtime does not tell.
bool bindInput(Operator const& op, OrtApi const& api, OrtShapeInferContext& context, int32_t input, Dimensions& found) noexcept {
  Port const& port = op.ports[input];
  Reason dropped;
  OrtTensorTypeAndShapeInfo* given = nullptr;  // belongs to the context, as do the names in it
  TensorInfo info;
  if (!succeeded(api, api.ShapeInferContext_GetInputTypeShape(&context, static_cast<size_t>(input), &given), op, dropped) ||
      !readInfo(api, op, given, info, dropped))
    return false;
  if (info.rank == 0) return true;  // here also what has no known rank
  if (!found.sizes.bind(op, port, static_cast<int64_t>(info.rank), info.dims, dropped)) return false;
  char const* names[kMaxRank]{};
  if (!succeeded(api, api.GetSymbolicDimensions(given, names, info.rank), op, dropped)) return false;
  for (int32_t axis = 0; axis < port.rank; ++axis) {
    char const*& name = found.names[port.sizes[axis]];
    if (name == nullptr && names[axis] != nullptr && names[axis][0] != '\0') name = names[axis];
  }
  return true;
}

bool print(Dimensions const& found, int32_t size, char (&text)[kLongestName]) noexcept {
  int64_t const value = found.sizes.values[size];
  if (value == kUnknown && found.names[size] == nullptr) return false;
  int const length = value == kUnknown ? std::snprintf(text, kLongestName, "%s", found.names[size])
                                       : std::snprintf(text, kLongestName, "%lld", static_cast<long long>(value));
  return length > 0 && static_cast<size_t>(length) < kLongestName;
}

void deduce(Operator const& op, Dimensions& found) noexcept {
  found.sizes.deduce(op);
  Deduction const* const sum = op.deduction;
  if (sum == nullptr || found.sizes.values[sum->size] != kUnknown) return;
  char all[kLongestName], leftOut[kLongestName], kept[kLongestName];
  if (!print(found, sum->all, all) || !print(found, sum->leftOut, leftOut) || !print(found, sum->kept, kept)) return;
  // Parentheses: the names may be sums themselves.
  int const length = std::snprintf(found.deduced, kLongestName, "(%s) - (%s) + (%s)", all, leftOut, kept);
  if (length > 0 && static_cast<size_t>(length) < kLongestName) found.names[sum->size] = found.deduced;
}

void setOutput(Operator const& op, OrtApi const& api, OrtShapeInferContext& context, int32_t output, Dimensions const& found) noexcept {
  Port const& port = op.ports[op.inputs + output];
  int64_t dims[kMaxRank];
  char const* names[kMaxRank];
  for (int32_t axis = 0; axis < port.rank; ++axis) {
    int32_t const size = port.sizes[axis];
    dims[axis] = found.sizes.values[size];
    names[axis] = dims[axis] == kUnknown ? found.names[size] : "";
    // Without a name ONNX Runtime would take -1 for a number, and equal to any other -1.
    if (names[axis] == nullptr) return;
  }
  Reason dropped;
  size_t const rank = static_cast<size_t>(port.rank);
  OrtTensorTypeAndShapeInfo* info = nullptr;
  if (!succeeded(api, api.CreateTensorTypeAndShapeInfo(&info), op, dropped)) return;
  if (succeeded(api, api.SetTensorElementType(info, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64), op, dropped) &&
      succeeded(api, api.SetDimensions(info, dims, rank), op, dropped) && succeeded(api, api.SetSymbolicDimensions(info, names, rank), op, dropped))
    succeeded(api, api.ShapeInferContext_SetOutputTypeShape(&context, static_cast<size_t>(output), info), op, dropped);
  api.ReleaseTensorTypeAndShapeInfo(info);
}

}  // namespace

void inferShapes(Operator const& op, OrtApi const& api, OrtShapeInferContext& context) noexcept {
  Dimensions found;
  for (int32_t input = 0; input < op.inputs; ++input) {
    if (!bindInput(op, api, context, input, found)) return;
  }
  deduce(op, found);
  for (int32_t output = 0; output < op.outputs; ++output) setOutput(op, api, context, output, found);
}

}  // namespace sts::onnxruntime
