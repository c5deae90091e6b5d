#include "custom_operator.h"

#include <limits>

#include "kernel.h"
#include "shape_inference.h"

namespace sts::onnxruntime {
namespace {

CustomOperator const& self(OrtCustomOp const* op) { return *static_cast<CustomOperator const*>(op); }

// Floats are left open: one operator then serves three types, and CreateKernel checks them.
ONNXTensorElementDataType declared(Port const& port) {
  switch (port.types) {
    case Types::kFloats: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    case Types::kInt64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case Types::kBool: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

}  // namespace

CustomOperator::CustomOperator(Operator const& definition, Provider where, Runtime const& from) noexcept
    : OrtCustomOp{}, op(definition), provider(where), runtime(from) {
  version = kApiVersion;
  GetName = [](OrtCustomOp const* op) { return self(op).op.name; };
  GetExecutionProviderType = [](OrtCustomOp const* op) -> char const* {
    return self(op).provider == Provider::kCuda ? "CUDAExecutionProvider" : "CPUExecutionProvider";
  };
  GetInputTypeCount = [](OrtCustomOp const* op) { return static_cast<size_t>(self(op).op.inputs); };
  GetOutputTypeCount = [](OrtCustomOp const* op) { return static_cast<size_t>(self(op).op.outputs); };
  GetInputType = [](OrtCustomOp const* op, size_t index) { return declared(self(op).op.ports[index]); };
  GetOutputType = [](OrtCustomOp const* op, size_t index) { return declared(self(op).op.ports[self(op).op.inputs + index]); };
  GetInputCharacteristic = [](OrtCustomOp const*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetOutputCharacteristic = [](OrtCustomOp const*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  // Where the provider's other operators have them.  Inputs of which only the shape is read, too: those are inputs of the graph that others read, and
  // asking for them on the host would copy them.
  GetInputMemoryType = [](OrtCustomOp const*, size_t) { return OrtMemTypeDefault; };
  GetVariadicInputMinArity = [](OrtCustomOp const*) { return 0; };
  GetVariadicInputHomogeneity = [](OrtCustomOp const*) { return 0; };
  GetVariadicOutputMinArity = [](OrtCustomOp const*) { return 0; };
  GetVariadicOutputHomogeneity = [](OrtCustomOp const*) { return 0; };
  GetStartVersion = [](OrtCustomOp const*) { return 1; };
  GetEndVersion = [](OrtCustomOp const*) { return std::numeric_limits<int>::max(); };
  CreateKernelV2 = [](OrtCustomOp const* op, OrtApi const* api, OrtKernelInfo const* info, void** kernel) {
    return createKernel(self(op), *api, *info, *kernel);
  };
  KernelComputeV2 = compute;
  KernelDestroy = destroyKernel;
  InferOutputShapeFn = [](OrtCustomOp const* op, OrtShapeInferContext* context) -> OrtStatusPtr {
    inferShapes(self(op).op, *self(op).runtime.api, *context);
    return nullptr;  // what is returned here is dropped by ONNX Runtime; createKernel refuses what does not fit
  };
}

}  // namespace sts::onnxruntime
