// Scalars: element types, exactly rounded float32 arithmetic, the exponential.  The same bits on every device and host: additions and products that
// belong together are explicit fused multiply-adds, nothing is left for the compiler to contract, and no library function is called.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define STS_INLINE __host__ __device__ __forceinline__
#else
#define STS_INLINE inline
#endif

namespace sts {

struct Half {
  uint16_t bits;
};

struct Bfloat16 {
  uint16_t bits;
};

STS_INLINE uint32_t bitsOf(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

STS_INLINE float floatOf(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

STS_INLINE float multiplyAdd(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

STS_INLINE float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

STS_INLINE float reciprocal(float a) {
#if defined(__CUDA_ARCH__)
  return __frcp_rn(a);
#else
  return 1.0f / a;
#endif
}

STS_INLINE float toFloat(float value) { return value; }

STS_INLINE float toFloat(Bfloat16 value) { return floatOf(uint32_t{value.bits} << 16); }

STS_INLINE float toFloat(Half value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  uint32_t const sign = uint32_t{value.bits} >> 15 << 31;
  uint32_t const magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return floatOf(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // infinity, NaN
  if (magnitude < 0x400u) {                                                                   // a multiple of 2^-24
    float const value32 = static_cast<float>(magnitude) * (1.0f / 16777216.0f);
    return floatOf(sign | bitsOf(value32));
  }
  return floatOf(sign | ((magnitude << 13) + (112u << 23)));
#endif
}

// e^x for x <= 0 to about 1 unit in the last place, subnormal results included (Cephes' expf: Cody-Waite reduction, polynomial of degree 7).
STS_INLINE float exponential(float x) {
  if (!(x > -104.0f)) return x != x ? x : 0.0f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  float const n = multiplyAdd(x, 1.44269504f, kRound) - kRound;
  float const r = multiplyAdd(n, 2.12194440e-4f, multiplyAdd(n, -0.693359375f, x));
  float p = multiplyAdd(r, 1.9875691500e-4f, 1.3981999507e-3f);
  p = multiplyAdd(p, r, 8.3334519073e-3f);
  p = multiplyAdd(p, r, 4.1665795894e-2f);
  p = multiplyAdd(p, r, 1.6666665459e-1f);
  p = multiplyAdd(p, r, 5.0000001201e-1f);
  p = multiplyAdd(p, r * r, r + 1.0f);
  // Two factors, since 2^n alone may be below float32's range; only the second product rounds.
  int32_t const exponent = static_cast<int32_t>(n), half = exponent / 2;
  float const low = floatOf(static_cast<uint32_t>(127 + half) << 23);
  float const high = floatOf(static_cast<uint32_t>(127 + exponent - half) << 23);
  return p * low * high;
}

// An unsigned integer that orders as the float does (-0 before 0, NaN at an end).
STS_INLINE uint32_t ordered(float value) {
  uint32_t const bits = bitsOf(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Eight consecutive elements of a row, read at once where the row allows it.
constexpr int kVector = 8;

template <class T>
struct alignas(16) Vector {
  T element[kVector];
};

// Elements [start, start + 8) of a row of `width`; zeros beyond its end.  aligned: every row starts at a multiple of 16 bytes and width is one of 8.
template <class T>
STS_INLINE Vector<T> loadVector(T const* row, int64_t start, int64_t width, bool aligned) {
  if (aligned && start < width) return *reinterpret_cast<Vector<T> const*>(row + start);
  Vector<T> vector;
  for (int e = 0; e < kVector; ++e) vector.element[e] = start + e < width ? row[start + e] : T{};
  return vector;
}

template <class T>
bool vectorsAligned(void const* base, int64_t width) {
  return reinterpret_cast<uintptr_t>(base) % alignof(Vector<T>) == 0 && width % kVector == 0;
}

}  // namespace sts
