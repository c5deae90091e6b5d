// What a plugin takes and gives, as data: its one field, and its tensors with their types and sizes.
#pragma once

#include "tensorrt.h"

namespace sts::trt {

constexpr char const* kVersion = "1";
constexpr char const* kNamespace = "sts";

constexpr int32_t kMaxRank = 4;
constexpr int32_t kMaxSizes = 9;

enum class Types : int32_t {
  kFloats,  // float32, float16 or bfloat16
  kInt64,
  kBool,
};

struct Port {
  char const* name;
  Types types;
  int32_t rank;
  int32_t sizes[kMaxRank];  // of each axis: which of the plugin's sizes it has; equal numbers are equal sizes
  int32_t sameTypeAs = -1;  // an earlier port
};

struct Interface {
  char const* name;
  char const* field;  // float32, finite, above 0
  int32_t inputs;
  int32_t outputs;
  Port const* ports;  // inputs, then outputs
};

}  // namespace sts::trt
