// sts::RepulsionSelect(features, first, candidates, quota) -> chosen: stage 1, see pruning/stage1/repulsion.py.
#pragma once

#include "../plugin.h"

namespace sts::trt {

class RepulsionSelectPlugin final : public Plugin {
 public:
  static Interface const kInterface;
  static nvinfer1::IPluginV3* create(float epsilon) noexcept;

  explicit RepulsionSelectPlugin(float epsilon) noexcept : Plugin(kInterface, epsilon) {}
  nvinfer1::IPluginV3* clone() noexcept override { return create(value()); }

 protected:
  void deduce(nvinfer1::IDimensionExpr const** sizes, nvinfer1::IExprBuilder& exprBuilder) const noexcept override;
  bool consistent(int64_t const* sizes) const noexcept override;
  size_t workspaceSize(int64_t const* sizes) const noexcept override;
  Status launch(int64_t const* sizes, DataType type, void const* const* inputs, void* const* outputs, void* workspace,
                cudaStream_t stream) const noexcept override;
};

}  // namespace sts::trt
