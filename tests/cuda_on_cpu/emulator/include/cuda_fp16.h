// Half precision as storage: conversions with CUDA's bits, no arithmetic (a kernel computes in
// float). The conversions by constructor and cast are explicit, so that nothing is rounded unseen.
#pragma once

#include "cuda_runtime.h"

class __half {
 public:
  __half() = default;
  explicit __half(float x) : bits(round(x)) {}
  explicit operator float() const { return widen(bits); }

  static constexpr __half from_bits(unsigned short bits) { return __half(bits, 0); }
  constexpr unsigned short to_bits() const { return bits; }

 private:
  constexpr __half(unsigned short bits, int) : bits(bits) {}

  static float widen(unsigned short half) {
    const unsigned sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
    if (rest > 0x7c00) return __uint_as_float(0x7fffffff);          // every NaN becomes this one
    if (rest == 0x7c00) return __uint_as_float(sign | 0x7f800000);  // infinity
    if (rest >= 0x0400) return __uint_as_float(sign | ((rest << 13) + ((127 - 15) << 23)));
    return copysignf(static_cast<float>(rest) * 0x1p-24f, __uint_as_float(sign));  // subnormal
  }

  static unsigned short round(float x) {
    const unsigned sign = __float_as_uint(x) >> 16 & 0x8000u;
    unsigned rest = __float_as_uint(x) & 0x7fffffffu;
    if (rest > 0x7f800000) return 0x7fff;
    if (rest < (127 - 14) << 23)  // subnormal: a count of 2^-24, rounded to even by nearbyint
      return sign | static_cast<unsigned>(nearbyintf(__uint_as_float(rest) * 0x1p24f));
    rest -= (127 - 15) << 23;
    rest = (rest + 0x0fff + (rest >> 13 & 1)) >> 13;
    return sign | (rest < 0x7c00 ? rest : 0x7c00);
  }

  unsigned short bits;
};

struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline __half __float2half(float x) { return __half(x); }
inline unsigned short __half_as_ushort(__half x) { return x.to_bits(); }
inline __half __ushort_as_half(unsigned short bits) { return __half::from_bits(bits); }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline float __low2float(__half2 v) { return __half2float(v.x); }
inline float __high2float(__half2 v) { return __half2float(v.y); }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
// All bits of each half in which x is less.
inline unsigned __hlt2_mask(__half2 x, __half2 y) {
  return (static_cast<float>(x.x) < static_cast<float>(y.x) ? 0xffffu : 0) |
         (static_cast<float>(x.y) < static_cast<float>(y.y) ? 0xffff0000u : 0);
}
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 v) { return {__half(v.x), __half(v.y)}; }
