// Which bin a value falls into: numpy's rule, as resque.h writes it down, in two ways that agree.
//
// NumpyBins follows the rule letter by letter, a division and two edges a value. Bins takes a multiply
// and one edge, for rows that are `plain`: a bin at least 2^-18 of the largest end (float64 2^-47), and
// nothing near the ends of the exponent's range. Why both then end at the same bin, with u = 2^-24 the
// unit roundoff, s the largest end, step the width of a bin and r the exact (x - first) / delta * bins:
//   - Edge i is computed as fl(fl(i * step) + first). The three roundings (of step, of the product, which
//     is no larger than delta <= 2s, of the sum) put it within 5us of where it belongs, that is within
//     5u * 2^18 = 0.08 of a bin: the edges ascend, and a value in bin j has r in [j - 0.08, j + 1.08).
//   - numpy's own guess trunc(fl(fl(fl(x - first) / delta) * bins)) is off r by less than 256 * 4u, 0.0001;
//     so it is j - 1, j or j + 1, and numpy's two comparisons lead from each of them to j.
//   - Here k is the whole number next to fl(x - first) * (1 / step), off r by less than 0.5001; so the
//     value lies above edge k - 1 and below edge k + 1, and comparing it with edge k decides between
//     bin k and bin k - 1.
//   - Half as many bins have twice the step, exactly, so that edge i there is edge 2i here to the bit:
//     the histogram of fewer bins is the sum of neighbours, as long as the ratio is a power of two.
#pragma once

#include "cuda/common.cuh"

namespace resque::cuda {
namespace {

// What stands in memory as T is binned as: float32, but float64 as it is.
template <typename T>
using Binned = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ double to_binned(double x) { return x; }
__device__ __forceinline__ float to_binned(float x) { return x; }
__device__ __forceinline__ float to_binned(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_binned(__nv_bfloat16 x) { return __bfloat162float(x); }

// Rounded by itself: a plain a * b + c becomes one operation.
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double multiply(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

template <typename F>
struct Precision;

template <>
struct Precision<float> {
    static constexpr float kNarrowest = 0x1p-18f, kSmallest = 0x1p-100f, kLargest = 0x1p120f;
    // Added to a small float, this leaves the whole number next to it in the lowest bits.
    static constexpr float kWhole = 0x1p23f;
    static constexpr uint32_t kWholeBits = 0x4b000000;
    __device__ static __forceinline__ uint32_t low_bits(float x) { return __float_as_uint(x); }
};

template <>
struct Precision<double> {
    static constexpr double kNarrowest = 0x1p-47, kSmallest = 0x1p-900, kLargest = 0x1p1000;
    static constexpr double kWhole = 0x1p52;
    static constexpr uint32_t kWholeBits = 0;
    __device__ static __forceinline__ uint32_t low_bits(double x) {
        return static_cast<uint32_t>(__double_as_longlong(x));
    }
};

// The greater of two numbers, or NaN where one is NaN: from compute capability 8.0 on one instruction
// for float32.
__device__ __forceinline__ float max_or_nan(float a, float b) {
#if defined(RESQUE_CUDA_ON_CPU) || RESQUE_SM < 80
    return isnan(a) || isnan(b) ? NAN : max(a, b);
#else
    float greater;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(greater) : "f"(a), "f"(b));
    return greater;
#endif
}
__device__ __forceinline__ double max_or_nan(double a, double b) {
    return isnan(a) || isnan(b) ? NAN : max(a, b);
}

// The least and the greatest value of a row. With an infinity or a NaN among the values, one end is not
// finite, and the row is not plain.
template <typename F>
struct Range {
    F low = INFINITY, high = -INFINITY;

    __device__ __forceinline__ void take(F least, F greatest) {
        low = min(low, least);
        high = max_or_nan(high, greatest);
    }
    // Over neighbouring lanes, 2 to 32 of them; every lane of the warp comes.
    __device__ __forceinline__ void reduce(int lanes) {
        for (int step = lanes / 2; step > 0; step /= 2) {
            const F least = __shfl_xor_sync(0xffffffffu, low, step);
            take(least, __shfl_xor_sync(0xffffffffu, high, step));
        }
    }
};

template <typename F>
struct Bins {
    F first, step, scale;

    // Whether a row from low to high is plain; if not, find() is not to be used.
    __device__ __forceinline__ bool set(F low, F high, int bins) {
        using P = Precision<F>;
        const bool constant = low == high;
        first = constant ? low - F(0.5) : low;
        const F last = constant ? high + F(0.5) : high;
        step = (last - first) / static_cast<F>(bins);
        scale = F(1) / step;
        return step > max(fabs(first), fabs(last)) * P::kNarrowest && step > P::kSmallest &&
               last - first < P::kLargest;
    }

    // kWholeBits + the bin, but `bins` in place of `bins` - 1 where x is not below an edge computed there.
    __device__ __forceinline__ uint32_t find(F x) const {
        using P = Precision<F>;
        const F whole = multiply_add(x - first, scale, P::kWhole);
        const F edge = add(multiply(whole - P::kWhole, step), first);
        return P::low_bits(whole - (x < edge ? F(1) : F(0)));
    }
};

// E is float for rows of float32 as long as these edges ascend, else double.
template <typename E>
struct NumpyBins {
    E first, last, delta, step;
    int bins;
    bool ascending;

    __device__ NumpyBins(E low, E high, int count) : first(low), last(high), bins(count) {
        if (low == high) {
            first = low - E(0.5);
            last = high + E(0.5);
        }
        delta = last - first;
        step = delta / static_cast<E>(bins);
        ascending = is_finite(delta);
        for (int i = 0; i < bins; ++i) ascending = ascending && edge(i) < edge(i + 1);
    }

    __device__ E edge(int i) const {
        return i == bins ? last : add(first, multiply(static_cast<E>(i), step));
    }
    __device__ int guess(E x) const {
        return min(static_cast<int>(multiply((x - first) / delta, static_cast<E>(bins))), bins - 1);
    }
    __device__ int find(E x) const {
        if (!ascending) return delta == 0 ? bins / 2 : guess(x);
        int bin = guess(x);
        if (x < edge(bin)) --bin;
        if (x >= edge(bin + 1) && bin != bins - 1) ++bin;
        return bin;
    }
};

}  // namespace
}  // namespace resque::cuda
