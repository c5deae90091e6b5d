#include "operators.h"

#include "last_token_topk.h"
#include "repulsion_select.h"

namespace sts::conformance {
namespace {

using nvinfer1::DataType;

std::vector<DataType> const kFloats{DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
std::vector<DataType> const kInt64{DataType::kINT64};
std::vector<DataType> const kBool{DataType::kBOOL};

Sizes repulsion(int64_t crops, int64_t rows, int64_t width, int64_t steps) {
  return {{"crops", crops}, {"rows", rows}, {"width", width}, {"steps", steps}};
}

Sizes topk(int64_t batch, int64_t heads, int64_t kvHeads, int64_t rows, int64_t headDim, int64_t visual, int64_t visualKeep) {
  return {{"batch", batch},
          {"heads", heads},
          {"kv_heads", kvHeads},
          {"rows", rows},
          {"head_dim", headDim},
          {"visual", visual},
          {"visual_keep", visualKeep},
          {"hidden", 8},
          {"kept", rows - visual + visualKeep}};
}

Sizes with(Sizes sizes, std::string const& name, int64_t value) {
  sizes[name] = value;
  return sizes;
}

Operator repulsionSelect() {
  Operator op;
  op.name = "RepulsionSelect";
  op.field = "epsilon";
  op.inputs = {
      {"features", kFloats, {"crops", "rows", "width"}},
      {"first", kInt64, {"crops"}},
      {"candidates", kBool, {"crops", "rows"}},
      {"quota", kBool, {"crops", "steps"}},
  };
  op.outputs = {{"chosen", kInt64, {"crops", "steps"}}};
  // Several crops; all rows of one; a single row; more rows than a block of threads has.
  op.cases = {repulsion(3, 37, 24, 9), repulsion(1, 41, 8, 41), repulsion(2, 1, 5, 1), repulsion(1, 1500, 16, 33)};
  op.largest = repulsion(3, 1500, 24, 48);
  op.inconsistent = {repulsion(3, 37, 24, 38), repulsion(0, 37, 24, 9), repulsion(3, 37, 24, 0), repulsion(1, (1 << 20) + 1, 4, 1)};
  op.free = {"crops", "rows", "width", "steps"};
  op.workspace = [](Sizes const& s) { return repulsionSelectWorkspace({s.at("crops"), s.at("rows"), s.at("width"), s.at("steps")}); };
  return op;
}

Operator lastTokenTopK() {
  Operator op;
  op.name = "LastTokenTopK";
  op.field = "scale";
  op.inputs = {
      {"query", kFloats, {"batch", "heads", "rows", "head_dim"}},
      {"key", kFloats, {"batch", "kv_heads", "rows", "head_dim"}, 0},
      {"attention_mask", kInt64, {"batch", "rows"}},
      {"visual_mask", kBool, {"batch", "rows"}},
      {"visual_embeds", kFloats, {"batch", "visual", "hidden"}},
      {"stage2_slots", kInt64, {"visual_keep"}},
  };
  op.outputs = {{"kept_rows", kInt64, {"batch", "kept"}}, {"last_row", kInt64, {"batch"}}};
  // A prefill of several requests; a decode step; a prompt without images; grouped heads and more rows than a block of threads has.
  op.cases = {topk(3, 4, 2, 29, 16, 12, 5), topk(2, 4, 2, 1, 16, 1, 1), topk(1, 2, 2, 9, 8, 1, 1), topk(1, 6, 2, 1400, 16, 1300, 400)};
  op.largest = topk(3, 6, 2, 1400, 16, 1300, 400);
  op.inconsistent = {topk(3, 4, 2, 29, 16, 30, 5),
                     topk(3, 4, 2, 29, 16, 12, 13),
                     topk(3, 5, 2, 29, 16, 12, 5),
                     topk(3, 4, 2, 29, 16, 12, 0),
                     with(topk(3, 4, 2, 29, 16, 12, 5), "kept", 23),
                     topk(0, 4, 2, 29, 16, 12, 5)};
  op.free = {"batch", "heads", "kv_heads", "rows", "head_dim", "visual", "visual_keep", "hidden"};
  op.workspace = [](Sizes const& s) {
    return lastTokenTopKWorkspace(
        {s.at("batch"), s.at("heads"), s.at("kv_heads"), s.at("rows"), s.at("head_dim"), s.at("visual"), s.at("visual_keep")});
  };
  return op;
}

}  // namespace

std::vector<Operator> const& operators() {
  static std::vector<Operator> const all{repulsionSelect(), lastTokenTopK()};
  return all;
}

nvinfer1::Dims dims(Tensor const& tensor, Sizes const& sizes) {
  nvinfer1::Dims result{};
  result.nbDims = static_cast<int32_t>(tensor.axes.size());
  for (size_t axis = 0; axis < tensor.axes.size(); ++axis) result.d[axis] = sizes.at(tensor.axes[axis]);
  return result;
}

int64_t volume(nvinfer1::Dims const& dims) {
  int64_t result = 1;
  for (int32_t axis = 0; axis < dims.nbDims; ++axis) result *= dims.d[axis];
  return result;
}

size_t bytes(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return 4;
    case DataType::kHALF:
    case DataType::kBF16: return 2;
    case DataType::kINT64: return 8;
    default: return 1;
  }
}

std::vector<nvinfer1::PluginTensorDesc> describe(Operator const& op, Sizes const& sizes, DataType type) {
  std::vector<nvinfer1::PluginTensorDesc> result;
  for (size_t position = 0; position < op.tensors(); ++position) {
    Tensor const& tensor = op.tensor(position);
    nvinfer1::PluginTensorDesc description{};
    description.dims = dims(tensor, sizes);
    description.type = tensor.types.size() == 1 ? tensor.types[0] : type;
    description.format = nvinfer1::TensorFormat::kLINEAR;
    description.scale = 1.0F;
    result.push_back(description);
  }
  return result;
}

std::vector<nvinfer1::DynamicPluginTensorDesc> profile(Operator const& op, Sizes const& sizes, DataType type) {
  std::vector<nvinfer1::DynamicPluginTensorDesc> result;
  for (nvinfer1::PluginTensorDesc const& description : describe(op, sizes, type)) {
    nvinfer1::DynamicPluginTensorDesc dynamic{};
    dynamic.desc = description;
    dynamic.min = dynamic.max = dynamic.opt = description.dims;
    for (int32_t axis = 0; axis < description.dims.nbDims; ++axis) {
      dynamic.desc.dims.d[axis] = -1;
      dynamic.min.d[axis] = 1;
      dynamic.opt.d[axis] = (1 + description.dims.d[axis]) / 2;
    }
    result.push_back(dynamic);
  }
  return result;
}

}  // namespace sts::conformance
