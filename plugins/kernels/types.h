// What every kernel's interface shares.  Plain C++17: neither CUDA nor TensorRT headers are needed to include it.
#pragma once

#include <cstddef>
#include <cstdint>

// The CUDA runtime's own declaration, repeated so that hosts without CUDA can include the interfaces.
struct CUstream_st;
typedef struct CUstream_st* cudaStream_t;

namespace sts {

// Element type of features, queries and keys.
enum class DataType : int32_t { kFloat = 0, kHalf = 1, kBfloat16 = 2 };

enum class Status : int32_t {
  kOk = 0,
  kInvalid = 1,    // a size, type, pointer or attribute out of range; nothing was read or written
  kCudaError = 2,  // a launch failed; cudaGetLastError was read and cleared
};

// How a call is launched on the device; the results are the same for all.  What is not said is chosen for the device: this is for measurements and tests.
struct LaunchOptions {
  int64_t tileRows = 0;   // of stage 1's matrix: 24 or 32; 0: what fills the device better
  bool dependent = true;  // kernels may start before those whose results they read have ended, where the device can do that (launch.h)
};

// Rows of a crop or of a prompt.  The ONNX function bodies count rows in float32, up to the same limit.
constexpr int64_t kMaxRows = int64_t{1} << 20;
// Crops, or requests of a batch.
constexpr int64_t kMaxBatch = 65535;
// Width of a row of features, of a head; heads.
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxHeads = 65535;

}  // namespace sts
