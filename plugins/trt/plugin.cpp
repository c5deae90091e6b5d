#include "plugin.h"

#include <algorithm>
#include <new>

#include "log.h"

namespace sts::trt {
namespace {

constexpr int32_t kFailure = -1;

bool isFloat(nvinfer1::DataType type) noexcept {
  return type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF || type == nvinfer1::DataType::kBF16;
}

bool accepts(Types types, nvinfer1::DataType type) noexcept {
  switch (types) {
    case Types::kFloats: return isFloat(type);
    case Types::kInt64: return type == nvinfer1::DataType::kINT64;
    case Types::kBool: return type == nvinfer1::DataType::kBOOL;
  }
  return false;
}

DataType kernelType(nvinfer1::DataType type) noexcept {
  if (type == nvinfer1::DataType::kHALF) return DataType::kHalf;
  return type == nvinfer1::DataType::kBF16 ? DataType::kBfloat16 : DataType::kFloat;
}

}  // namespace

Plugin::Plugin(Operator const& op, float value) noexcept
    : mOperator(op), mValue(value), mField(op.attribute, &mValue, nvinfer1::PluginFieldType::kFLOAT32, 1), mFields{1, &mField} {}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept { return new (std::nothrow) Plugin(mOperator, mValue); }

nvinfer1::AsciiChar const* Plugin::getPluginName() const noexcept { return mOperator.name; }
nvinfer1::AsciiChar const* Plugin::getPluginVersion() const noexcept { return kVersion; }
nvinfer1::AsciiChar const* Plugin::getPluginNamespace() const noexcept { return kNamespace; }

int32_t Plugin::getNbOutputs() const noexcept { return mOperator.outputs; }

bool Plugin::checkCounts(char const* method, int32_t nbInputs, int32_t nbOutputs) const noexcept {
  if (nbInputs == mOperator.inputs && nbOutputs == mOperator.outputs) return true;
  logError("sts::%s: %s was called with %d inputs and %d outputs; there are %d and %d", mOperator.name, method, nbInputs, nbOutputs, mOperator.inputs,
           mOperator.outputs);
  return false;
}

int32_t Plugin::getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const* /*inputTypes*/,
                                   int32_t nbInputs) const noexcept {
  if (!checkCounts("getOutputDataTypes", nbInputs, nbOutputs)) return kFailure;
  std::fill_n(outputTypes, nbOutputs, nvinfer1::DataType::kINT64);  // both plugins give row numbers only
  return 0;
}

int32_t Plugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* /*shapeInputs*/,
                                int32_t /*nbShapeInputs*/, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
                                nvinfer1::IExprBuilder& exprBuilder) noexcept {
  if (!checkCounts("getOutputShapes", nbInputs, nbOutputs)) return kFailure;
  nvinfer1::IDimensionExpr const* sizes[kMaxSizes]{};
  for (int32_t i = 0; i < nbInputs; ++i) {
    Port const& port = mOperator.ports[i];
    if (inputs[i].nbDims != port.rank) {
      logError("sts::%s: %s has %d dimensions; it needs %d", mOperator.name, port.name, inputs[i].nbDims, port.rank);
      return kFailure;
    }
    for (int32_t axis = 0; axis < port.rank; ++axis) {
      // Of several inputs with this size the first that is a constant: it lets TensorRT know more.
      nvinfer1::IDimensionExpr const*& size = sizes[port.sizes[axis]];
      if (size == nullptr || !size->isConstant()) {
        nvinfer1::IDimensionExpr const* const other = inputs[i].d[axis];
        if (size == nullptr || other->isConstant()) size = other;
      }
    }
  }
  Deduction const* const sum = mOperator.deduction;
  if (sum != nullptr) {
    nvinfer1::IDimensionExpr const* const others = exprBuilder.operation(nvinfer1::DimensionOperation::kSUB, *sizes[sum->all], *sizes[sum->leftOut]);
    sizes[sum->size] = others == nullptr ? nullptr : exprBuilder.operation(nvinfer1::DimensionOperation::kSUM, *others, *sizes[sum->kept]);
  }
  for (int32_t i = 0; i < nbOutputs; ++i) {
    Port const& port = mOperator.ports[nbInputs + i];
    outputs[i].nbDims = port.rank;
    for (int32_t axis = 0; axis < port.rank; ++axis) {
      outputs[i].d[axis] = sizes[port.sizes[axis]];
      if (outputs[i].d[axis] == nullptr) return kFailure;
    }
  }
  return 0;
}

bool Plugin::supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept {
  if (nbInputs != mOperator.inputs || nbOutputs != mOperator.outputs || pos < 0 || pos >= nbInputs + nbOutputs) return false;
  Port const& port = mOperator.ports[pos];
  nvinfer1::PluginTensorDesc const& tensor = inOut[pos].desc;
  return tensor.format == nvinfer1::TensorFormat::kLINEAR && accepts(port.types, tensor.type) &&
         (port.sameTypeAs < 0 || tensor.type == inOut[port.sameTypeAs].desc.type);
}

size_t Plugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
                                nvinfer1::DynamicPluginTensorDesc const* /*outputs*/, int32_t nbOutputs) const noexcept {
  if (!checkCounts("getWorkspaceSize", nbInputs, nbOutputs)) return 0;
  int64_t largest[kMaxSizes]{};
  for (int32_t i = 0; i < nbInputs; ++i) {
    Port const& port = mOperator.ports[i];
    if (inputs[i].max.nbDims != port.rank) return 0;
    for (int32_t axis = 0; axis < port.rank; ++axis) {
      int64_t& size = largest[port.sizes[axis]];
      size = std::max<int64_t>(size, inputs[i].max.d[axis]);
    }
  }
  return mOperator.workspaceSize(largest);
}

int32_t Plugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs, nvinfer1::DynamicPluginTensorDesc const* out,
                                int32_t nbOutputs) noexcept {
  if (!checkCounts("configurePlugin", nbInputs, nbOutputs)) return kFailure;
  // Without this the engine would be built, and then fail in its first enqueue.
  if (getWorkspaceSize(in, nbInputs, out, nbOutputs) == 0) {
    logError("sts::%s: the optimization profile's largest sizes are more than the kernels support", mOperator.name);
    return kFailure;
  }
  return 0;
}

bool Plugin::bind(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out, Sizes& sizes) const noexcept {
  Reason reason;
  bool fits = true;
  for (int32_t i = 0; fits && i < mOperator.inputs + mOperator.outputs; ++i) {
    nvinfer1::Dims const& dims = i < mOperator.inputs ? in[i].dims : out[i - mOperator.inputs].dims;
    fits = sizes.bind(mOperator, mOperator.ports[i], dims.nbDims, dims.d, reason);
  }
  fits = fits && sizes.check(mOperator, reason);
  if (!fits) logError("%s", reason.text);
  return fits;
}

int32_t Plugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const* out,
                              int32_t nbOutputs) noexcept {
  Sizes sizes;
  return checkCounts("onShapeChange", nbInputs, nbOutputs) && bind(in, out, sizes) ? 0 : kFailure;
}

int32_t Plugin::enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc, void const* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  Sizes sizes;
  if (!bind(inputDesc, outputDesc, sizes)) return kFailure;
  if (!isFloat(inputDesc[0].type)) {
    logError("sts::%s: %s must be float32, float16 or bfloat16", mOperator.name, mOperator.ports[0].name);
    return kFailure;
  }
  Call const call{sizes.values, kernelType(inputDesc[0].type), mValue, inputs, outputs, workspace};
  switch (mOperator.launch(call, stream)) {
    case Status::kOk: return 0;
    case Status::kInvalid: logError("sts::%s: the kernels refused a size or a pointer", mOperator.name); break;
    case Status::kCudaError: logError("sts::%s: a kernel could not be launched", mOperator.name); break;
  }
  return kFailure;
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext* /*context*/) noexcept { return clone(); }

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept { return &mFields; }

}  // namespace sts::trt
