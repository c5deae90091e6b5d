// Kernel launches.  Without nvcc, the device is the one that tests/plugins/simulated_device.h simulates: the same sources, run by host threads.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime_api.h>

namespace sts {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int64_t threads, cudaStream_t stream, Arguments... arguments) {
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream>>>(arguments...);
}

}  // namespace sts
#else
#include "simulated_device.h"
#endif

#include "types.h"

namespace sts {

inline Status launched() { return cudaGetLastError() == cudaSuccess ? Status::kOk : Status::kCudaError; }

}  // namespace sts
