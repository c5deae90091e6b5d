#include "creator.h"

#include "fields.h"
#include "log.h"

namespace sts::trt {

Creator::Creator(Interface const& interface, Create create) noexcept
    : mInterface(interface), mCreate(create), mField(interface.field, nullptr, nvinfer1::PluginFieldType::kFLOAT32, 1), mFields{1, &mField} {}

// The phases differ only in where the fields come from: an engine stores what getFieldsToSerialize gave, which is what the ONNX node gave.
nvinfer1::IPluginV3* Creator::createPlugin(nvinfer1::AsciiChar const* /*name*/, nvinfer1::PluginFieldCollection const* fc,
                                           nvinfer1::TensorRTPhase /*phase*/) noexcept {
  float value = 0.0F;
  if (!readField(mInterface, fc, value)) return nullptr;
  nvinfer1::IPluginV3* const plugin = mCreate(value);
  if (plugin == nullptr) logError("sts::%s: out of memory", mInterface.name);
  return plugin;
}

nvinfer1::PluginFieldCollection const* Creator::getFieldNames() noexcept { return &mFields; }
nvinfer1::AsciiChar const* Creator::getPluginName() const noexcept { return mInterface.name; }
nvinfer1::AsciiChar const* Creator::getPluginVersion() const noexcept { return kVersion; }
nvinfer1::AsciiChar const* Creator::getPluginNamespace() const noexcept { return kNamespace; }

}  // namespace sts::trt
