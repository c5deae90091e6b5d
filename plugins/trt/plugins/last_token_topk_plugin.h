// sts::LastTokenTopK(query, key, attention_mask, visual_mask, visual_embeds, stage2_slots) -> kept_rows, last_row: stage 2, see pruning/stage2/last_token.py.
#pragma once

#include "../plugin.h"

namespace sts::trt {

class LastTokenTopKPlugin final : public Plugin {
 public:
  static Interface const kInterface;
  static nvinfer1::IPluginV3* create(float scale) noexcept;

  explicit LastTokenTopKPlugin(float scale) noexcept : Plugin(kInterface, scale) {}
  nvinfer1::IPluginV3* clone() noexcept override { return create(value()); }

 protected:
  void deduce(nvinfer1::IDimensionExpr const** sizes, nvinfer1::IExprBuilder& exprBuilder) const noexcept override;
  bool consistent(int64_t const* sizes) const noexcept override;
  size_t workspaceSize(int64_t const* sizes) const noexcept override;
  Status launch(int64_t const* sizes, DataType type, void const* const* inputs, void* const* outputs, void* workspace,
                cudaStream_t stream) const noexcept override;
};

}  // namespace sts::trt
