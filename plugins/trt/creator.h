// Makes plugins of one kind.
#pragma once

#include "operator.h"
#include "tensorrt.h"

namespace sts::trt {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(Operator const& op) noexcept;
  Creator(Creator const&) = delete;
  Creator& operator=(Creator const&) = delete;

  nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fc,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
  nvinfer1::AsciiChar const* getPluginName() const noexcept override;
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

 private:
  Operator const& mOperator;
  nvinfer1::PluginField mField;
  nvinfer1::PluginFieldCollection mFields;
};

}  // namespace sts::trt
