// Thread groups: what the algorithms are written over.  A group is a block of threads on the device, or one thread on the host; the tests add a third
// one that runs the device's code on the host.
//
//   kWarp                      lanes that can exchange registers, 32 or 1; all of them take part in every exchange
//   size(), rank()             threads of the group, a multiple of kWarp; this one
//   sync()                     barrier of the group, orders its memory accesses
//   warpMin(value)             least uint32 of the warp, for all of its lanes
//   shuffleXor, shuffleUp, shuffle(value, distance or lane)      as __shfl_*_sync
//   atomicMin, atomicAdd       relaxed
#pragma once

#include "scalar.h"

#if defined(__CUDACC__)
#define STS_DEVICE __device__ __forceinline__
#define STS_UNROLL _Pragma("unroll")
#else
#define STS_DEVICE inline
#define STS_UNROLL
#endif

namespace sts {

#if !defined(__CUDACC__)
struct SerialGroup {
  static constexpr int kWarp = 1;

  STS_DEVICE int size() const { return 1; }
  STS_DEVICE int rank() const { return 0; }
  STS_DEVICE void sync() {}
  STS_DEVICE uint32_t warpMin(uint32_t value) { return value; }
  template <class T>
  STS_DEVICE T shuffleXor(T value, int) {
    return value;
  }
  template <class T>
  STS_DEVICE T shuffleUp(T value, int) {
    return value;
  }
  template <class T>
  STS_DEVICE T shuffle(T value, int) {
    return value;
  }
  STS_DEVICE void atomicMin(unsigned long long* address, unsigned long long value) {
    if (value < *address) *address = value;
  }
  STS_DEVICE void atomicAdd(uint32_t* address, uint32_t value) { *address += value; }
};
#else
// All threads of a one-dimensional block; its size is a multiple of 32.
struct CudaBlock {
  static constexpr int kWarp = 32;

  __device__ __forceinline__ int size() const { return static_cast<int>(blockDim.x); }
  __device__ __forceinline__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ void sync() { __syncthreads(); }
  __device__ __forceinline__ uint32_t warpMin(uint32_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_min_sync(~0u, value);
#else
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value = min(value, __shfl_xor_sync(~0u, value, offset));
    return value;
#endif
  }
  template <class T>
  __device__ __forceinline__ T shuffleXor(T value, int distance) {
    return __shfl_xor_sync(~0u, value, distance);
  }
  template <class T>
  __device__ __forceinline__ T shuffleUp(T value, int distance) {
    return __shfl_up_sync(~0u, value, distance);
  }
  template <class T>
  __device__ __forceinline__ T shuffle(T value, int lane) {
    return __shfl_sync(~0u, value, lane);
  }
  __device__ __forceinline__ void atomicMin(unsigned long long* address, unsigned long long value) { ::atomicMin(address, value); }
  __device__ __forceinline__ void atomicAdd(uint32_t* address, uint32_t value) { ::atomicAdd(address, value); }
};
#endif

}  // namespace sts
