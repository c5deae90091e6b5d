#include "last_token_topk_plugin.h"

#include <algorithm>
#include <new>

#include "last_token_topk.h"

namespace sts::trt {
namespace {

enum Size : int32_t { kBatch, kHeads, kKvHeads, kRows, kHeadDim, kVisual, kVisualKeep, kHidden, kKept };
static_assert(kKept < kMaxSizes);

constexpr Port kPorts[] = {
    {"query", Types::kFloats, 4, {kBatch, kHeads, kRows, kHeadDim}},
    {"key", Types::kFloats, 4, {kBatch, kKvHeads, kRows, kHeadDim}, 0},
    {"attention_mask", Types::kInt64, 2, {kBatch, kRows}},
    {"visual_mask", Types::kBool, 2, {kBatch, kRows}},
    {"visual_embeds", Types::kFloats, 3, {kBatch, kVisual, kHidden}},  // only its shape is read
    {"stage2_slots", Types::kInt64, 1, {kVisualKeep}},                 // only its shape is read
    {"kept_rows", Types::kInt64, 2, {kBatch, kKept}},
    {"last_row", Types::kInt64, 1, {kBatch}},
};

LastTokenTopKShape shapeOf(int64_t const* sizes) noexcept {
  return {sizes[kBatch], sizes[kHeads], sizes[kKvHeads], sizes[kRows], sizes[kHeadDim], sizes[kVisual], sizes[kVisualKeep]};
}

}  // namespace

Interface const LastTokenTopKPlugin::kInterface{"LastTokenTopK", "scale", 6, 2, kPorts};

nvinfer1::IPluginV3* LastTokenTopKPlugin::create(float scale) noexcept { return new (std::nothrow) LastTokenTopKPlugin(scale); }

void LastTokenTopKPlugin::deduce(nvinfer1::IDimensionExpr const** sizes, nvinfer1::IExprBuilder& exprBuilder) const noexcept {
  // kept = rows - visual + visual_keep
  nvinfer1::IDimensionExpr const* const text = exprBuilder.operation(nvinfer1::DimensionOperation::kSUB, *sizes[kRows], *sizes[kVisual]);
  sizes[kKept] = text == nullptr ? nullptr : exprBuilder.operation(nvinfer1::DimensionOperation::kSUM, *text, *sizes[kVisualKeep]);
}

bool LastTokenTopKPlugin::consistent(int64_t const* sizes) const noexcept {
  return sizes[kVisual] <= sizes[kRows] && sizes[kVisualKeep] <= sizes[kVisual] && sizes[kKept] == sizes[kRows] - sizes[kVisual] + sizes[kVisualKeep];
}

size_t LastTokenTopKPlugin::workspaceSize(int64_t const* sizes) const noexcept {
  LastTokenTopKShape shape = shapeOf(sizes);
  shape.visual = std::min(shape.visual, shape.rows);
  shape.visualKeep = std::min(shape.visualKeep, shape.visual);
  return lastTokenTopKWorkspace(shape);
}

Status LastTokenTopKPlugin::launch(int64_t const* sizes, DataType type, void const* const* inputs, void* const* outputs, void* workspace,
                                   cudaStream_t stream) const noexcept {
  return lastTokenTopK(shapeOf(sizes), type, inputs[0], inputs[1], static_cast<int64_t const*>(inputs[2]), static_cast<bool const*>(inputs[3]),
                       value(), static_cast<int64_t*>(outputs[0]), static_cast<int64_t*>(outputs[1]), workspace, stream);
}

}  // namespace sts::trt
