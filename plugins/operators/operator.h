// The operators as data, for every library that offers them: the one attribute, the tensors with their types and sizes, and the kernels.
#pragma once

#include "types.h"

namespace sts {

constexpr char const* kNamespace = "sts";
// Of what this file describes: raised whenever a tensor, its type or its meaning changes.
constexpr int32_t kOperatorsVersion = 1;

constexpr int32_t kMaxRank = 4;
constexpr int32_t kMaxPorts = 8;
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
  int32_t sizes[kMaxRank];  // of each axis: which of the operator's sizes it has; equal numbers are equal sizes
  int32_t sameTypeAs = -1;  // an earlier port
};

// size = all - left out + kept: what no input has as a dimension.
struct Deduction {
  int32_t size;
  int32_t all, leftOut, kept;
};

struct Call {
  int64_t const* sizes;
  DataType type;  // of the first input
  float value;    // of the attribute
  void const* const* inputs;
  void* const* outputs;
  void* workspace;
};

struct Operator {
  char const* name;
  char const* attribute;  // float32, finite, above 0
  int32_t inputs;
  int32_t outputs;
  Port const* ports;           // inputs, then outputs
  Deduction const* deduction;  // nullptr: every size is a dimension of an input
  // Bytes for these sizes, or for the largest that are allowed where one bounds another; 0 if they are out of range.
  size_t (*workspaceSize)(int64_t const* sizes);
  // Whether no size is above the one that bounds it.
  bool (*bounded)(int64_t const* sizes);
  Status (*launch)(Call const& call, cudaStream_t stream);
  Status (*run)(Call const& call);  // on this thread; every pointer is a host pointer
};

extern Operator const kRepulsionSelect;
extern Operator const kLastTokenTopK;

}  // namespace sts
