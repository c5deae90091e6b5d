#include "creator.h"

#include <new>

#include "fields.h"
#include "log.h"
#include "plugin.h"

namespace sts::trt {

Creator::Creator(Operator const& op) noexcept
    : mOperator(op), mField(op.attribute, nullptr, nvinfer1::PluginFieldType::kFLOAT32, 1), mFields{1, &mField} {}

// The phases differ only in where the fields come from: an engine stores what getFieldsToSerialize gave, which is what the ONNX node gave.
nvinfer1::IPluginV3* Creator::createPlugin(nvinfer1::AsciiChar const* /*name*/, nvinfer1::PluginFieldCollection const* fc,
                                           nvinfer1::TensorRTPhase /*phase*/) noexcept {
  float value = 0.0F;
  if (!readField(mOperator, fc, value)) return nullptr;
  nvinfer1::IPluginV3* const plugin = new (std::nothrow) Plugin(mOperator, value);
  if (plugin == nullptr) logError("sts::%s: out of memory", mOperator.name);
  return plugin;
}

nvinfer1::PluginFieldCollection const* Creator::getFieldNames() noexcept { return &mFields; }
nvinfer1::AsciiChar const* Creator::getPluginName() const noexcept { return mOperator.name; }
nvinfer1::AsciiChar const* Creator::getPluginVersion() const noexcept { return kVersion; }
nvinfer1::AsciiChar const* Creator::getPluginNamespace() const noexcept { return kNamespace; }

}  // namespace sts::trt
