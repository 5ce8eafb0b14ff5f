// Device functions on one thread's values: bits, conversions, mathematics, hinted loads and stores.
#pragma once

#include <math.h>  // not <cmath>: kernels call isnan and its like without std::

#include <cstdint>
#include <cstring>
#include <ctime>
#include <type_traits>

namespace cuda_on_cpu {

template <class To, class From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "the same bits in another type");
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

// A conversion to an integer type saturates on the device and sends NaN to 0; in C++ both are
// undefined. 2^digits and its negative are exact in float and double.
template <class To, class From>
To saturate(From value) {
  constexpr int digits = sizeof(To) * 8 - std::is_signed_v<To>;
  constexpr To highest = static_cast<To>(~std::make_unsigned_t<To>{0} >> std::is_signed_v<To>);
  constexpr To lowest = std::is_signed_v<To> ? static_cast<To>(-highest - 1) : To{0};
  if (isnan(value)) return 0;
  if (value >= ldexp(From{1}, digits)) return highest;
  if (value <= static_cast<From>(lowest)) return lowest;
  return static_cast<To>(value);
}

}  // namespace cuda_on_cpu

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) {
  return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int bit = 0; bit < 32; ++bit) result |= (x >> bit & 1u) << (31 - bit);
  return result;
}
inline unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
         __brev(static_cast<unsigned>(x >> 32));
}
// Each nibble of `selector` picks one of the 8 bytes of b:a; its high bit spreads that byte's sign.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> (4 * i);
    unsigned byte = bytes >> (8 * (pick & 7)) & 0xff;
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  const std::uint64_t both = static_cast<std::uint64_t>(high) << 32 | low;
  return static_cast<unsigned>(both << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  const std::uint64_t both = static_cast<std::uint64_t>(high) << 32 | low;
  return static_cast<unsigned>(both >> (shift & 31));
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32);
}
inline int __mulhi(int a, int b) {
  return static_cast<int>(static_cast<std::int64_t>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

// The lesser and the greater of two pairs of 16-bit numbers.
inline unsigned __vminu2(unsigned a, unsigned b) {
  const unsigned low = (a & 0xffff) < (b & 0xffff) ? a : b, high = a >> 16 < b >> 16 ? a : b;
  return (high & 0xffff0000u) | (low & 0xffff);
}
inline unsigned __vmaxu2(unsigned a, unsigned b) {
  const unsigned low = (a & 0xffff) < (b & 0xffff) ? b : a, high = a >> 16 < b >> 16 ? b : a;
  return (high & 0xffff0000u) | (low & 0xffff);
}

inline int __float_as_int(float x) { return cuda_on_cpu::bits_as<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_on_cpu::bits_as<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu::bits_as<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_on_cpu::bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_on_cpu::bits_as<double>(x); }

// rn: to nearest, ties to even; rz: towards zero; rd: down; ru: up.
#define CUDA_ON_CPU_TO_INTEGER(name, From, To)                                    \
  inline To name##_rn(From x) { return cuda_on_cpu::saturate<To>(nearbyint(x)); } \
  inline To name##_rz(From x) { return cuda_on_cpu::saturate<To>(trunc(x)); }     \
  inline To name##_rd(From x) { return cuda_on_cpu::saturate<To>(floor(x)); }     \
  inline To name##_ru(From x) { return cuda_on_cpu::saturate<To>(ceil(x)); }
CUDA_ON_CPU_TO_INTEGER(__float2int, float, int)
CUDA_ON_CPU_TO_INTEGER(__float2uint, float, unsigned)
CUDA_ON_CPU_TO_INTEGER(__float2ll, float, long long)
CUDA_ON_CPU_TO_INTEGER(__float2ull, float, unsigned long long)
CUDA_ON_CPU_TO_INTEGER(__double2int, double, int)
CUDA_ON_CPU_TO_INTEGER(__double2uint, double, unsigned)
CUDA_ON_CPU_TO_INTEGER(__double2ll, double, long long)
CUDA_ON_CPU_TO_INTEGER(__double2ull, double, unsigned long long)
#undef CUDA_ON_CPU_TO_INTEGER
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline double __int2double_rn(int x) { return x; }
inline double __ll2double_rn(long long x) { return static_cast<double>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double x) { return sqrt(x); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
// Macros: glibc declares functions of these names.
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)

// As CUDA's: mixed integer types meet in their common type; of a number and a NaN, the number.
template <class A, class B, class T = std::common_type_t<A, B>>
std::enable_if_t<std::is_arithmetic_v<T>, T> min(A a, B b) {
  if constexpr (std::is_floating_point_v<T>)
    return fmin(static_cast<T>(a), static_cast<T>(b));
  else
    return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B, class T = std::common_type_t<A, B>>
std::enable_if_t<std::is_arithmetic_v<T>, T> max(A a, B b) {
  if constexpr (std::is_floating_point_v<T>)
    return fmax(static_cast<T>(a), static_cast<T>(b));
  else
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

// Caches are not modelled: a hint changes nothing.
#define CUDA_ON_CPU_LOAD(name) \
  template <class T>           \
  T name(const T* address) {   \
    return *address;           \
  }
#define CUDA_ON_CPU_STORE(name)                        \
  template <class T>                                   \
  void name(T* address, std::common_type_t<T> value) { \
    *address = value;                                  \
  }
CUDA_ON_CPU_LOAD(__ldg)
CUDA_ON_CPU_LOAD(__ldca)
CUDA_ON_CPU_LOAD(__ldcg)
CUDA_ON_CPU_LOAD(__ldcs)
CUDA_ON_CPU_LOAD(__ldlu)
CUDA_ON_CPU_LOAD(__ldcv)
CUDA_ON_CPU_STORE(__stwb)
CUDA_ON_CPU_STORE(__stcg)
CUDA_ON_CPU_STORE(__stcs)
CUDA_ON_CPU_STORE(__stwt)
#undef CUDA_ON_CPU_LOAD
#undef CUDA_ON_CPU_STORE

inline long long clock64() { return std::clock(); }
