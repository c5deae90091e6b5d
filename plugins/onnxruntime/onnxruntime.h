// ONNX Runtime's C API, headers of 1.17 or later.
#pragma once

#include <onnxruntime_c_api.h>

#if ORT_API_VERSION < 17
#error "These operators need the headers of ONNX Runtime 1.17 or later"
#endif

namespace sts::onnxruntime {

// What the library asks for: the oldest version with shape inference for custom operators, so that every runtime since loads it.  The API only
// appends.
constexpr uint32_t kApiVersion = 17;
// From here on kernels learn which stream they allocate for.
constexpr uint32_t kStreamApiVersion = 28;

// The two versions of one runtime's API.
struct Runtime {
  OrtApi const* api;
  OrtApi const* streamApi;  // nullptr: the runtime or the headers are older
};

}  // namespace sts::onnxruntime
