// Kernel launches.  Without nvcc, the device is the one that tests/plugins/simulated_device.h simulates: the same sources, run by host threads.
//
// A chain is a sequence of kernels on one stream of which each reads what the one before has written.  Its first kernel is launched ordinarily: it starts
// when all earlier work of the stream has ended, so the workspace may be that of an earlier call.  The others may be dependent launches (programmatic
// dependent launch, from compute capability 9.0 on): they start early and wait on the device, which hides what a launch costs.
//
// Every kernel after the first calls awaitPrevious() before anything else, in every thread, and allowNext() after that or never.  So every kernel reads
// complete results of all before it: its wait ends when the previous kernel has ended and its writes are visible; that one ended after its own wait, so
// after the kernel before it had ended; and so on to the first.  allowNext() only says when the next one may become resident, which is when every block
// has called it: by then all of this kernel's blocks are resident, and none can be kept out by the ones that wait.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

namespace sts {

// Of the current device; 0 if there is none.  Both calls are allowed in capture and neither asks the device.
inline int64_t multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 0;
  return count;
}

// Whether this kernel, and those compiled with it, may be launched dependently: its code on this device was compiled for compute capability 9.0 or
// later, so that it waits (PTX of an older one runs there, too, and would not); and the driver can capture such launches, which it can since CUDA 12.3.
template <class... Parameters>
bool canDepend([[maybe_unused]] void (*kernel)(Parameters...)) {
#if CUDART_VERSION >= 12030
  int driver = 0;
  cudaFuncAttributes attributes;
  return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12030 && cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess &&
         attributes.ptxVersion >= 90;
#else
  return false;
#endif
}

// Why this kernel, and those compiled with it, do not run on the current device, in CUDA's words; nullptr if they do.
template <class... Parameters>
char const* refusal(void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes;
  cudaError_t const error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess) return nullptr;
  static_cast<void>(cudaGetLastError());
  return cudaGetErrorString(error);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int64_t threads, cudaStream_t stream, Arguments... arguments) {
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream>>>(arguments...);
}

// The next kernel of a chain.
template <class... Parameters, class... Arguments>
void launchNext(bool dependent, void (*kernel)(Parameters...), int64_t blocks, int64_t threads, cudaStream_t stream, Arguments... arguments) {
#if CUDART_VERSION >= 12030
  if (dependent) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t configuration{};
    configuration.gridDim = dim3(static_cast<unsigned>(blocks));
    configuration.blockDim = dim3(static_cast<unsigned>(threads));
    configuration.stream = stream;
    configuration.attrs = &attribute;
    configuration.numAttrs = 1;
    cudaLaunchKernelEx(&configuration, kernel, static_cast<Parameters>(arguments)...);  // its error is that of launched(), too
    return;
  }
#endif
  static_cast<void>(dependent);
  launch(kernel, blocks, threads, stream, arguments...);
}

__device__ __forceinline__ void awaitPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12030
  cudaGridDependencySynchronize();
#endif
}

__device__ __forceinline__ void allowNext() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12030
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

}  // namespace sts
#else
#include "simulated_device.h"
#endif

#include "types.h"

namespace sts {

inline Status launched() { return cudaGetLastError() == cudaSuccess ? Status::kOk : Status::kCudaError; }

}  // namespace sts
