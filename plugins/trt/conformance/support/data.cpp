#include "data.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <random>
#include <stdexcept>

#include "last_token_topk.h"
#include "reference.h"
#include "repulsion_select.h"

namespace sts::conformance {
namespace {

// A choice this clear is the same however float32 is rounded.
constexpr double kClear = 1e-4;
constexpr unsigned kAttempts = 1000;

template <typename T>
std::vector<uint8_t> toBytes(std::vector<T> const& values) {
  std::vector<uint8_t> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// Uniform in [-1, 1), the same with every standard library.
class Random {
 public:
  explicit Random(unsigned seed) : mEngine(seed) {}
  float next() { return static_cast<float>(static_cast<double>(mEngine()) / 2147483648.0 - 1.0); }
  int64_t below(int64_t limit) { return static_cast<int64_t>(mEngine() % static_cast<uint64_t>(limit)); }

 private:
  std::mt19937 mEngine;
};

// Numbers of an element type: their bytes, and what they are exactly.
struct Floats {
  std::vector<uint8_t> bytes;
  std::vector<double> exact;
};

Floats rounded(std::vector<float> const& values, nvinfer1::DataType type) {
  Floats result;
  if (type == nvinfer1::DataType::kHALF) {
    std::vector<__half> halves;
    for (float const value : values) halves.push_back(__float2half_rn(value));
    for (__half const half : halves) result.exact.push_back(__half2float(half));
    result.bytes = toBytes(halves);
  } else if (type == nvinfer1::DataType::kBF16) {
    std::vector<__nv_bfloat16> halves;
    for (float const value : values) halves.push_back(__float2bfloat16_rn(value));
    for (__nv_bfloat16 const half : halves) result.exact.push_back(__bfloat162float(half));
    result.bytes = toBytes(halves);
  } else {
    result.exact.assign(values.begin(), values.end());
    result.bytes = toBytes(values);
  }
  return result;
}

// [outer, rows, width], with `tied` rows 2 i and 2 i + 1 alike.
Floats randomRows(Random& random, int64_t outer, int64_t rows, int64_t width, bool tied, nvinfer1::DataType type) {
  std::vector<float> values(static_cast<size_t>(outer * rows * width));
  for (size_t i = 0; i < values.size(); ++i) {
    auto const row = static_cast<int64_t>(i) / width % rows;
    values[i] = tied && row % 2 == 1 ? values[i - static_cast<size_t>(width)] : random.next();
  }
  return rounded(values, type);
}

sts::DataType kernelType(nvinfer1::DataType type) {
  if (type == nvinfer1::DataType::kFLOAT) return sts::DataType::kFloat;
  return type == nvinfer1::DataType::kHALF ? sts::DataType::kHalf : sts::DataType::kBfloat16;
}

void require(Status status) {
  if (status != Status::kOk) throw std::runtime_error("the host's kernels refused a case");
}

struct Repulsion {
  Floats features;
  std::vector<int64_t> first;
  std::vector<uint8_t> candidates;
};

// First is a candidate, as are enough others.
Repulsion randomRepulsion(Sizes const& sizes, nvinfer1::DataType type, bool tied, unsigned seed) {
  Random random(seed);
  int64_t const crops = sizes.at("crops"), rows = sizes.at("rows"), steps = sizes.at("steps");
  Repulsion result;
  result.features = randomRows(random, crops, rows, sizes.at("width"), tied, type);
  result.candidates.assign(static_cast<size_t>(crops * rows), 1);
  for (int64_t crop = 0; crop < crops; ++crop) {
    result.first.push_back(random.below(rows));
    for (int64_t out = 0; out < (rows - steps) / 2; ++out) {
      int64_t const row = random.below(rows);
      if (row != result.first.back()) result.candidates[static_cast<size_t>(crop * rows + row)] = 0;
    }
  }
  return result;
}

Data dataOf(Repulsion const& inputs) {
  Data data;
  data.inputs = {inputs.features.bytes, toBytes(inputs.first), inputs.candidates, {}};
  return data;
}

struct TopK {
  Floats query;
  Floats key;
  std::vector<int64_t> attentionMask;
  std::vector<uint8_t> visualMask;
};

// Padding after the last real row of all requests but the first; as many visual rows as there is room for, none where there is room for one.
TopK randomTopK(Sizes const& sizes, nvinfer1::DataType type, bool tied, unsigned seed) {
  Random random(seed);
  int64_t const batch = sizes.at("batch"), rows = sizes.at("rows"), width = sizes.at("head_dim"), visual = sizes.at("visual");
  TopK result;
  result.query = randomRows(random, batch * sizes.at("heads"), rows, width, tied, type);
  result.key = randomRows(random, batch * sizes.at("kv_heads"), rows, width, tied, type);
  for (int64_t request = 0; request < batch; ++request) {
    int64_t const text = rows - visual;
    int64_t const padding = text > 2 ? std::min<int64_t>(request, text / 2) : 0;
    int64_t const begin = text / 3;  // of the visual rows
    for (int64_t row = 0; row < rows; ++row) {
      result.attentionMask.push_back(row < rows - padding);
      result.visualMask.push_back(visual > 1 && row >= begin && row < begin + visual);
    }
  }
  return result;
}

Data dataOf(TopK const& inputs) {
  Data data;
  data.inputs = {inputs.query.bytes, inputs.key.bytes, toBytes(inputs.attentionMask), inputs.visualMask, {}, {}};
  return data;
}

}  // namespace

Data clearData(Operator const& op, Sizes const& sizes, nvinfer1::DataType type, float value) {
  for (unsigned seed = 0; seed < kAttempts; ++seed) {
    Data data;
    Selection selection;
    if (op.name == "RepulsionSelect") {
      Repulsion const inputs = randomRepulsion(sizes, type, false, seed);
      selection = repulsionReference(sizes, inputs.features.exact, inputs.first, inputs.candidates, static_cast<double>(value));
      data = dataOf(inputs);
    } else {
      TopK const inputs = randomTopK(sizes, type, false, seed);
      selection = topkReference(sizes, inputs.query.exact, inputs.key.exact, inputs.attentionMask, inputs.visualMask, static_cast<double>(value));
      data = dataOf(inputs);
    }
    if (selection.margin < kClear) continue;
    data.expected = selection.outputs;
    return data;
  }
  throw std::runtime_error("no inputs with a clear choice were found");
}

Data tiedData(Operator const& op, Sizes const& sizes, nvinfer1::DataType type, float value) {
  std::vector<uint8_t> workspace(op.workspace(sizes) + 256);
  void* const aligned = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(workspace.data()) + 255) / 256 * 256);
  std::vector<std::vector<int64_t>> outputs;
  for (Tensor const& tensor : op.outputs) outputs.emplace_back(static_cast<size_t>(volume(dims(tensor, sizes))));
  Data data;
  if (op.name == "RepulsionSelect") {
    Repulsion const inputs = randomRepulsion(sizes, type, true, 1);
    require(repulsionSelectHost({sizes.at("crops"), sizes.at("rows"), sizes.at("width"), sizes.at("steps")}, kernelType(type),
                                inputs.features.bytes.data(), inputs.first.data(), reinterpret_cast<bool const*>(inputs.candidates.data()), value,
                                outputs[0].data(), aligned));
    data = dataOf(inputs);
  } else {
    TopK const inputs = randomTopK(sizes, type, true, 1);
    require(lastTokenTopKHost({sizes.at("batch"), sizes.at("heads"), sizes.at("kv_heads"), sizes.at("rows"), sizes.at("head_dim"), sizes.at("visual"),
                               sizes.at("visual_keep")},
                              kernelType(type), inputs.query.bytes.data(), inputs.key.bytes.data(), inputs.attentionMask.data(),
                              reinterpret_cast<bool const*>(inputs.visualMask.data()), value, outputs[0].data(), outputs[1].data(), aligned));
    data = dataOf(inputs);
  }
  data.expected = outputs;
  return data;
}

}  // namespace sts::conformance
