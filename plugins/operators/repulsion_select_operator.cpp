// sts::RepulsionSelect(features, first, candidates, quota) -> chosen: stage 1, see pruning/stage1/repulsion.py.
#include <algorithm>

#include "operator.h"
#include "repulsion_select.h"

namespace sts {
namespace {

enum Size : int32_t { kCrops, kRows, kWidth, kSteps };

constexpr Port kPorts[] = {
    // clang-format off
    {"features", Types::kFloats, 3, {kCrops, kRows, kWidth}},
    {"first", Types::kInt64, 1, {kCrops}},
    {"candidates", Types::kBool, 2, {kCrops, kRows}},
    {"quota", Types::kBool, 2, {kCrops, kSteps}},  // only its shape is read
    {"chosen", Types::kInt64, 2, {kCrops, kSteps}},
    // clang-format on
};

size_t workspaceSize(int64_t const* sizes) {
  return repulsionSelectWorkspace({sizes[kCrops], sizes[kRows], sizes[kWidth], std::min(sizes[kSteps], sizes[kRows])});
}

bool bounded(int64_t const* sizes) { return sizes[kSteps] <= sizes[kRows]; }

RepulsionSelectShape shapeOf(int64_t const* sizes) { return {sizes[kCrops], sizes[kRows], sizes[kWidth], sizes[kSteps]}; }

Status launch(Call const& call, cudaStream_t stream) {
  return repulsionSelect(shapeOf(call.sizes), call.type, call.inputs[0], static_cast<int64_t const*>(call.inputs[1]),
                         static_cast<bool const*>(call.inputs[2]), call.value, static_cast<int64_t*>(call.outputs[0]), call.workspace, stream);
}

Status run(Call const& call) {
  return repulsionSelectHost(shapeOf(call.sizes), call.type, call.inputs[0], static_cast<int64_t const*>(call.inputs[1]),
                             static_cast<bool const*>(call.inputs[2]), call.value, static_cast<int64_t*>(call.outputs[0]), call.workspace);
}

}  // namespace

Operator const kRepulsionSelect{"RepulsionSelect", "epsilon", 4, 1, kPorts, nullptr, workspaceSize, bounded, launch, run};

}  // namespace sts
