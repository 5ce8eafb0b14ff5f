// bfloat16 as storage: conversions with CUDA's bits, no arithmetic (a kernel computes in float).
// The conversions by constructor and cast are explicit, so that nothing is rounded unseen.
#pragma once

#include "cuda_runtime.h"

class __nv_bfloat16 {
 public:
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float x) : bits(round(x)) {}
  explicit operator float() const { return __uint_as_float(static_cast<unsigned>(bits) << 16); }

  static constexpr __nv_bfloat16 from_bits(unsigned short bits) { return __nv_bfloat16(bits, 0); }
  constexpr unsigned short to_bits() const { return bits; }

 private:
  constexpr __nv_bfloat16(unsigned short bits, int) : bits(bits) {}

  static unsigned short round(float x) {
    const unsigned all = __float_as_uint(x);
    if ((all & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    // 0x7fff is half a step less one: a tie goes up only from an odd neighbour, to the even one.
    return (all + 0x7fff + (all >> 16 & 1)) >> 16;
  }

  unsigned short bits;
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline float __bfloat162float(__nv_bfloat16 x) { return static_cast<float>(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.to_bits(); }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  return __nv_bfloat16::from_bits(bits);
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline float __low2float(__nv_bfloat162 v) { return __bfloat162float(v.x); }
inline float __high2float(__nv_bfloat162 v) { return __bfloat162float(v.y); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
  return {__bfloat162float(v.x), __bfloat162float(v.y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) {
  return {__nv_bfloat16(v.x), __nv_bfloat16(v.y)};
}
