// Inputs for enqueue, and what must come out.
#pragma once

#include <cstdint>
#include <vector>

#include "operators.h"

namespace sts::conformance {

struct Data {
  std::vector<std::vector<uint8_t>> inputs;    // bytes of each input; empty: only its shape is read
  std::vector<std::vector<int64_t>> expected;  // each output
};

// Random inputs for which float32 and double precision choose the same, and the choice of the reference (reference.h).  Deterministic.
Data clearData(Operator const& op, Sizes const& sizes, nvinfer1::DataType type, float value);

// Inputs in which every row occurs twice, so that all choices are ties, and the choice of the host's kernels.
Data tiedData(Operator const& op, Sizes const& sizes, nvinfer1::DataType type, float value);

}  // namespace sts::conformance
