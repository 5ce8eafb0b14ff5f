// How far two histograms are apart: what each bin adds, and the sorted heights.
//
// Counts are whole numbers, so logarithms and roots come from tables, built once a block. With p = a / m,
// q = b / m and no difference of large sums:
//   jensen_shannon = sum [a (log a - log (a + b)/2) + b (log b - log (a + b)/2)] / 2m
//   bhattacharyya  = 1 - sum sqrt(a b) / m = sum (sqrt a - sqrt b)^2 / 2m, since both sum to m
//   kl             = sum a (log a - log b) / m, over bins where both are positive
// Each is exactly 0 for equal histograms, because log a and log (a + a)/2 are then the same number.
#pragma once

#include "cuda/common.cuh"

#include <cstring>

namespace resque::cuda {
namespace {

struct alignas(16) LogRoot {
    double log, root;
};

// log(twice / 2), and 0 in place of log 0: what it is multiplied with is then 0.
__device__ __forceinline__ double log_half(int64_t twice) {
    return twice > 0 ? log(0.5 * static_cast<double>(twice)) : 0;
}

// sqrt() would call a function for its special cases, and rounds better than is needed here.
__device__ __forceinline__ LogRoot log_root(int count) {
    const double x = static_cast<double>(count);
    return {log_half(2 * int64_t{count}), count > 0 ? x * rsqrt(x) : 0};
}

// Of counts below `size`; of larger ones the same numbers are computed.
struct Tables {
    const LogRoot* counts;  // [size]
    const double* halves;   // [size] log(i / 2)
    int size;
};

// The sums over bins of the three divergences, before they are divided by m.
struct Terms {
    double jensen_shannon = 0, bhattacharyya = 0, kl = 0;

    __device__ __forceinline__ void look_up(const Tables& tables, int a, int b) {
        add(a, b, tables.counts[a], tables.counts[b], tables.halves[a + b]);
    }
    __device__ __forceinline__ void compute(int a, int b) {
        add(a, b, log_root(a), log_root(b), log_half(int64_t{a} + b));
    }

    __device__ __forceinline__ void add(int a, int b, const LogRoot& of_a, const LogRoot& of_b,
                                        double middle) {
        const double p = whole(a), q = whole(b);
        jensen_shannon += p * (of_a.log - middle);
        jensen_shannon += q * (of_b.log - middle);
        const double root = of_a.root - of_b.root;
        bhattacharyya += root * root;
        if (b > 0) kl += p * (of_a.log - of_b.log);
    }

    // A count as float64 by its bits: 2^52 + count less 2^52. A conversion runs at a quarter of that speed.
    __device__ __forceinline__ static double whole(int count) {
        return __longlong_as_double((1075ll << 52) | count) - 0x1p52;
    }
};

// Two counts of 16 bits in a word: the old row's low, the new row's high. Sorted both at once. Before
// sm_90 there is no such instruction for integers; but as half floats, too, numbers up to 31,743 are in
// the order of their bits. Those have a minimum from sm_80 on, a comparison before that.
__device__ __forceinline__ void order(uint32_t& a, uint32_t& b) {
#if RESQUE_SM < 80
    __half2 x, y;
    memcpy(&x, &a, 4);
    memcpy(&y, &b, 4);
    const uint32_t less = __hlt2_mask(x, y), low = (a & less) | (b & ~less);
    b = (b & less) | (a & ~less);
#elif RESQUE_SM < 90 && !defined(RESQUE_CUDA_ON_CPU)
    uint32_t low;
    asm("min.f16x2 %0, %1, %2;" : "=r"(low) : "r"(a), "r"(b));
    asm("max.f16x2 %0, %1, %2;" : "=r"(b) : "r"(a), "r"(b));
#else
    const uint32_t low = __vminu2(a, b);
    b = __vmaxu2(a, b);
#endif
    a = low;
}

// Whether Batcher's odd-even merge sort of `count` words compares words a and a + step while it merges
// sorted runs of `run`.
__host__ __device__ constexpr bool compares(int count, int run, int step, int a) {
    const int from = step % run;
    return step <= run && a >= from && (a - from) % (2 * step) < step && a + step < count &&
           a / (2 * run) == (a + step) / (2 * run);
}

// All unrolled, in registers: 63, 191 and 543 comparisons for 16, 32 and 64 words.
template <int N>
__device__ __forceinline__ void sort(uint32_t (&h)[N]) {
    constexpr int kSteps = N == 16 ? 4 : N == 32 ? 5 : 6;
    static_assert(N == 1 << kSteps);
#pragma unroll
    for (int r = 0; r < kSteps; ++r) {
#pragma unroll
        for (int s = kSteps - 1; s >= 0; --s) {
#pragma unroll
            for (int a = 0; a < N; ++a) {
                if (compares(N, 1 << r, 1 << s, a)) order(h[a], h[a + (1 << s)]);
            }
        }
    }
}

// Sum over i of |i-th smallest old count - i-th smallest new count| of the words at column[0], [pitch]...
// The zeros that make them N sort to the front on both sides, and add nothing.
template <int N>
__device__ __forceinline__ int sorted_difference(const uint32_t* column, int pitch, int bins) {
    uint32_t h[N];
#pragma unroll
    for (int i = 0; i < N; ++i) h[i] = i < bins ? column[i * pitch] : 0;
    sort(h);
    int sum = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        sum += abs(static_cast<int>(h[i] & 0xffff) - static_cast<int>(h[i] >> 16));
    }
    return sum;
}

}  // namespace
}  // namespace resque::cuda
