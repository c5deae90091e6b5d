// sts::LastTokenTopK(query, key, attention_mask, visual_mask, visual_embeds, stage2_slots) -> kept_rows, last_row: stage 2, see pruning/stage2/last_token.py.
#include <algorithm>

#include "last_token_topk.h"
#include "operator.h"

namespace sts {
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

constexpr Deduction kKeptRows{kKept, kRows, kVisual, kVisualKeep};

LastTokenTopKShape shapeOf(int64_t const* sizes) {
  return {sizes[kBatch], sizes[kHeads], sizes[kKvHeads], sizes[kRows], sizes[kHeadDim], sizes[kVisual], sizes[kVisualKeep]};
}

size_t workspaceSize(int64_t const* sizes) {
  LastTokenTopKShape shape = shapeOf(sizes);
  shape.visual = std::min(shape.visual, shape.rows);
  shape.visualKeep = std::min(shape.visualKeep, shape.visual);
  return lastTokenTopKWorkspace(shape);
}

bool bounded(int64_t const* sizes) { return sizes[kVisual] <= sizes[kRows] && sizes[kVisualKeep] <= sizes[kVisual]; }

Status launch(Call const& call, cudaStream_t stream) {
  return lastTokenTopK(shapeOf(call.sizes), call.type, call.inputs[0], call.inputs[1], static_cast<int64_t const*>(call.inputs[2]),
                       static_cast<bool const*>(call.inputs[3]), call.value, static_cast<int64_t*>(call.outputs[0]),
                       static_cast<int64_t*>(call.outputs[1]), call.workspace, stream);
}

Status run(Call const& call) {
  return lastTokenTopKHost(shapeOf(call.sizes), call.type, call.inputs[0], call.inputs[1], static_cast<int64_t const*>(call.inputs[2]),
                           static_cast<bool const*>(call.inputs[3]), call.value, static_cast<int64_t*>(call.outputs[0]),
                           static_cast<int64_t*>(call.outputs[1]), call.workspace);
}

}  // namespace

Operator const kLastTokenTopK{"LastTokenTopK", "scale", 6, 2, kPorts, &kKeptRows, workspaceSize, bounded, launch, run};

}  // namespace sts
