#include "kernel.h"

#include <cmath>
#include <new>

#include "last_token_topk.h"
#include "status.h"
#include "tensor_info.h"
#include "workspace.h"

namespace sts::onnxruntime {
namespace {

struct Kernel {
  CustomOperator const& custom;
  float value;
};

bool readAttribute(Operator const& op, OrtApi const& api, OrtKernelInfo const& info, float& value, Reason& reason) noexcept {
  if (!Result(api, api.KernelInfoGetAttribute_float(&info, op.attribute, &value)).ok()) {
    reason.say("sts::%s: attribute \"%s\" is missing or is no float", op.name, op.attribute);
    return false;
  }
  if (std::isfinite(value) && value > 0.0F) return true;
  reason.say("sts::%s: attribute \"%s\" is %g; it must be finite and above 0", op.name, op.attribute, static_cast<double>(value));
  return false;
}

// What the graph tells of an input; of other things than tensors nothing.
bool readGraphInfo(Operator const& op, OrtApi const& api, OrtKernelInfo const& kernel, int32_t input, TensorInfo& info, Reason& reason) noexcept {
  OrtTypeInfo* type = nullptr;
  if (!succeeded(api, api.KernelInfo_GetInputTypeInfo(&kernel, static_cast<size_t>(input), &type), op, reason)) return false;
  OrtTensorTypeAndShapeInfo const* tensor = nullptr;  // belongs to `type`
  bool const read =
      succeeded(api, api.CastTypeInfoToTensorInfo(type, &tensor), op, reason) && (tensor == nullptr || readInfo(api, op, tensor, info, reason));
  api.ReleaseTypeInfo(type);
  return read;
}

bool checkGraph(Operator const& op, OrtApi const& api, OrtKernelInfo const& kernel, Reason& reason) noexcept {
  TensorInfo infos[kMaxPorts];
  Sizes sizes;
  for (int32_t i = 0; i < op.inputs; ++i) {
    TensorInfo& info = infos[i];
    if (!readGraphInfo(op, api, kernel, i, info, reason) || !checkType(op, i, info.type, infos, reason)) return false;
    // A rank of 0 may also be one that the graph does not tell.
    if (info.rank != 0 && !sizes.bind(op, op.ports[i], static_cast<int64_t>(info.rank), info.dims, reason)) return false;
  }
  sizes.deduce(op);
  return !sizes.known(op) || sizes.check(op, reason);
}

bool readInput(Operator const& op, OrtApi const& api, OrtKernelContext const& context, int32_t input, OrtValue const*& value, TensorInfo& info,
               Reason& reason) noexcept {
  if (!succeeded(api, api.KernelContext_GetInput(&context, static_cast<size_t>(input), &value), op, reason)) return false;
  if (value == nullptr) {
    reason.say("sts::%s: %s is missing", op.name, op.ports[input].name);
    return false;
  }
  OrtTensorTypeAndShapeInfo* tensor = nullptr;
  if (!succeeded(api, api.GetTensorTypeAndShape(value, &tensor), op, reason)) return false;
  bool const read = readInfo(api, op, tensor, info, reason);
  api.ReleaseTensorTypeAndShapeInfo(tensor);
  return read;
}

// Whose memory it is, ONNX Runtime knows; the kernels only read inputs.
bool dataOf(Operator const& op, OrtApi const& api, OrtValue const* value, void*& data, Reason& reason) noexcept {
  return succeeded(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &data), op, reason);
}

bool makeOutput(Operator const& op, OrtApi const& api, OrtKernelContext& context, int32_t output, Sizes const& sizes, void*& data,
                Reason& reason) noexcept {
  Port const& port = op.ports[op.inputs + output];
  int64_t dims[kMaxRank];
  for (int32_t axis = 0; axis < port.rank; ++axis) dims[axis] = sizes.values[port.sizes[axis]];
  OrtValue* value = nullptr;
  return succeeded(api, api.KernelContext_GetOutput(&context, static_cast<size_t>(output), dims, static_cast<size_t>(port.rank), &value), op,
                   reason) &&
         dataOf(op, api, value, data, reason);
}

bool enqueue(Kernel const& kernel, OrtKernelContext& context, Reason& reason) noexcept {
  Operator const& op = kernel.custom.op;
  OrtApi const& api = *kernel.custom.runtime.api;
  TensorInfo infos[kMaxPorts];
  OrtValue const* values[kMaxPorts]{};
  void* data[kMaxPorts]{};
  Sizes sizes;
  for (int32_t i = 0; i < op.inputs; ++i) {
    TensorInfo& info = infos[i];
    if (!readInput(op, api, context, i, values[i], info, reason) || !checkType(op, i, info.type, infos, reason) ||
        !sizes.bind(op, op.ports[i], static_cast<int64_t>(info.rank), info.dims, reason) || !dataOf(op, api, values[i], data[i], reason))
      return false;
  }
  sizes.deduce(op);
  if (!sizes.check(op, reason)) return false;
  for (int32_t i = 0; i < op.outputs; ++i) {
    if (!makeOutput(op, api, context, i, sizes, data[op.inputs + i], reason)) return false;
  }
  Workspace const workspace(kernel.custom.runtime, op, context, *values[0], op.workspaceSize(sizes.values), reason);
  if (workspace.pointer() == nullptr) return false;
  Call const call{sizes.values, kernelType(infos[0].type), kernel.value, data, data + op.inputs, workspace.pointer()};
  Status status = Status::kInvalid;
  if (kernel.custom.provider == Provider::kCuda) {
    void* stream = nullptr;
    if (!succeeded(api, api.KernelContext_GetGPUComputeStream(&context, &stream), op, reason)) return false;
    status = op.launch(call, static_cast<cudaStream_t>(stream));
  } else {
    status = op.run(call);
  }
  switch (status) {
    case Status::kOk: return true;
    case Status::kInvalid: reason.say("sts::%s: the kernels refused a size or a pointer", op.name); break;
    case Status::kCudaError: {
      char const* const why = deviceRefusal();
      reason.say("sts::%s: a kernel could not be launched (%s)", op.name, why != nullptr ? why : "though the device runs others");
      break;
    }
  }
  return false;
}

}  // namespace

OrtStatusPtr createKernel(CustomOperator const& custom, OrtApi const& api, OrtKernelInfo const& info, void*& kernel) noexcept {
  Reason reason;
  float value = 0.0F;
  kernel = nullptr;
  if (!readAttribute(custom.op, api, info, value, reason) || !checkGraph(custom.op, api, info, reason)) return refusal(api, reason);
  kernel = new (std::nothrow) Kernel{custom, value};
  if (kernel != nullptr) return nullptr;
  reason.say("sts::%s: out of memory", custom.op.name);
  return refusal(api, reason);
}

OrtStatusPtr compute(void* kernel, OrtKernelContext* context) noexcept {
  Kernel const& self = *static_cast<Kernel const*>(kernel);
  Reason reason;
  return enqueue(self, *context, reason) ? nullptr : refusal(*self.custom.runtime.api, reason);
}

void destroyKernel(void* kernel) noexcept { delete static_cast<Kernel*>(kernel); }

}  // namespace sts::onnxruntime
