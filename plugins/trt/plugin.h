// What both plugins share: everything that follows from their interface (interface.h).  No method throws: objects are made with new (std::nothrow)
// and nothing else allocates.
#pragma once

#include "interface.h"
#include "types.h"

namespace sts::trt {

class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
 public:
  // value: the interface's field.
  Plugin(Interface const& interface, float value) noexcept;
  Plugin(Plugin const&) = delete;
  Plugin& operator=(Plugin const&) = delete;

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;

  // IPluginV3OneCore
  nvinfer1::AsciiChar const* getPluginName() const noexcept override;
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

  // IPluginV3OneBuild
  int32_t getNbOutputs() const noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const* inputTypes,
                             int32_t nbInputs) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* shapeInputs, int32_t nbShapeInputs,
                          nvinfer1::DimsExprs* outputs, int32_t nbOutputs, nvinfer1::IExprBuilder& exprBuilder) noexcept override;
  bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept override;
  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs, nvinfer1::DynamicPluginTensorDesc const* out,
                          int32_t nbOutputs) noexcept override;
  size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t nbInputs, nvinfer1::DynamicPluginTensorDesc const* outputs,
                          int32_t nbOutputs) const noexcept override;

  // IPluginV3OneRuntime
  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const* out,
                        int32_t nbOutputs) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc, void const* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

 protected:
  float value() const noexcept { return mValue; }

  // Sizes are indexed as the interface's ports say.
  // The size expressions that no input has, from those that the inputs have.
  virtual void deduce(nvinfer1::IDimensionExpr const** sizes, nvinfer1::IExprBuilder& exprBuilder) const noexcept = 0;
  // Whether the sizes that no input has are those of deduce.
  virtual bool consistent(int64_t const* sizes) const noexcept = 0;
  // Bytes for these input sizes, or for the largest that are allowed where one bounds another; 0 if they are out of range.
  virtual size_t workspaceSize(int64_t const* sizes) const noexcept = 0;
  virtual Status launch(int64_t const* sizes, DataType type, void const* const* inputs, void* const* outputs, void* workspace,
                        cudaStream_t stream) const noexcept = 0;

 private:
  bool checkCounts(char const* method, int32_t nbInputs, int32_t nbOutputs) const noexcept;
  bool bind(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out, int64_t* sizes) const noexcept;

  Interface const& mInterface;
  float mValue;
  nvinfer1::PluginField mField;
  nvinfer1::PluginFieldCollection mFields;
};

}  // namespace sts::trt
