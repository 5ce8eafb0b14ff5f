// Eight lanes of float64 and the loads that widen to them, for the files of cpu/isa/.
#pragma once

#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/isa.h"

#define RESQUE_INLINE_LAMBDA __attribute__((always_inline))
#define RESQUE_INLINE inline RESQUE_INLINE_LAMBDA

namespace resque::cpu::RESQUE_ISA {

// The compiler's vector types: one zmm with AVX-512, two ymm with AVX2, four xmm without either.
using Double8 = double __attribute__((vector_size(64)));
using Float8 = float __attribute__((vector_size(32)));
using Word8 = uint32_t __attribute__((vector_size(32)));
using Short8 = uint16_t __attribute__((vector_size(16)));

template <typename V>
RESQUE_INLINE V load_bits(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// The two conversions are written out: left to itself the compiler takes them apart into halves and
// shuffles, five times slower (g++ 12).
RESQUE_INLINE Double8 widen(Float8 v) {
#if defined(__AVX512F__)
    return (Double8)_mm512_cvtps_pd((__m256)v);
#elif defined(__AVX2__)
    using Double4 = double __attribute__((vector_size(32)));
    const Double4 low = (Double4)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
    const Double4 high = (Double4)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
#else
    return __builtin_convertvector(v, Double8);
#endif
}

// sum + x * x. The square of a float32 is exact in float64, so one rounding or two are the same for all
// narrower types; but the addition then waits for no multiplication.
RESQUE_INLINE Double8 add_square(Double8 sum, Double8 x) {
#if defined(__AVX512F__)
    return (Double8)_mm512_fmadd_pd((__m512d)x, (__m512d)x, (__m512d)sum);
#else
    return sum + x * x;
#endif
}

RESQUE_INLINE Word8 widen(Short8 v) {
#if defined(__AVX2__)
    return (Word8)_mm256_cvtepu16_epi32((__m128i)v);
#else
    return __builtin_convertvector(v, Word8);
#endif
}

// Eight values as float32, which holds every 16-bit float.
RESQUE_INLINE Float8 load8_single(const float* p) { return load_bits<Float8>(p); }

RESQUE_INLINE Float8 load8_single(const BFloat* p) {
    const Word8 bits = widen(load_bits<Short8>(p)) << 16;
    return load_bits<Float8>(&bits);
}

// float16 in float32's place has its exponent 112 too low, denormals included, so one exact product
// mends all finite values; exponent 31 (infinity, NaN) then reads as 2^16 or more, and gets float32's.
// AVX-512 has an instruction for it.
RESQUE_INLINE Float8 load8_single(const Half* p) {
#if defined(__AVX512VL__)
    return (Float8)_mm256_maskz_cvtph_ps(0xff, (__m128i)load_bits<Short8>(p));  // every lane
#else
    const Word8 bits = widen(load_bits<Short8>(p));
    const Word8 magnitude = (bits & 0x7fffu) << 13;
    const Float8 scaled = load_bits<Float8>(&magnitude) * 0x1p112f;
    Word8 wide = load_bits<Word8>(&scaled);
    wide |= (Word8)(wide >= 0x47800000u) & 0x7f800000u;
    wide |= (bits & 0x8000u) << 16;
    return load_bits<Float8>(&wide);
#endif
}

RESQUE_INLINE Double8 load8(const double* p) { return load_bits<Double8>(p); }

template <typename T>
RESQUE_INLINE Double8 load8(const T* p) {
    return widen(load8_single(p));
}

RESQUE_INLINE double load1(const double* p) { return *p; }
RESQUE_INLINE double load1(const float* p) { return *p; }

template <typename T>
RESQUE_INLINE double load1(const T* p) {
    T lanes[8] = {*p};
    return load8(lanes)[0];
}

}  // namespace resque::cpu::RESQUE_ISA
