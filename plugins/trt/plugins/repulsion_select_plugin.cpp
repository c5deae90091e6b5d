#include "repulsion_select_plugin.h"

#include <algorithm>
#include <new>

#include "repulsion_select.h"

namespace sts::trt {
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

}  // namespace

Interface const RepulsionSelectPlugin::kInterface{"RepulsionSelect", "epsilon", 4, 1, kPorts};

nvinfer1::IPluginV3* RepulsionSelectPlugin::create(float epsilon) noexcept { return new (std::nothrow) RepulsionSelectPlugin(epsilon); }

void RepulsionSelectPlugin::deduce(nvinfer1::IDimensionExpr const** /*sizes*/, nvinfer1::IExprBuilder& /*exprBuilder*/) const noexcept {}

bool RepulsionSelectPlugin::consistent(int64_t const* sizes) const noexcept { return sizes[kSteps] <= sizes[kRows]; }

size_t RepulsionSelectPlugin::workspaceSize(int64_t const* sizes) const noexcept {
  return repulsionSelectWorkspace({sizes[kCrops], sizes[kRows], sizes[kWidth], std::min(sizes[kSteps], sizes[kRows])});
}

Status RepulsionSelectPlugin::launch(int64_t const* sizes, DataType type, void const* const* inputs, void* const* outputs, void* workspace,
                                     cudaStream_t stream) const noexcept {
  return repulsionSelect({sizes[kCrops], sizes[kRows], sizes[kWidth], sizes[kSteps]}, type, inputs[0], static_cast<int64_t const*>(inputs[1]),
                         static_cast<bool const*>(inputs[2]), value(), static_cast<int64_t*>(outputs[0]), workspace, stream);
}

}  // namespace sts::trt
