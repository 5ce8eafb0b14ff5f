// lloyd_step on CUDA: what the fast product can say of a distance, and what it cannot.
//
// Frame. Rows x and centres c are shifted by one vector m, near the centres' mean, and scaled by powers
// of two, p for rows and q for centres, so that the largest values of both come near 2^8:
//     y = p (x - m)      z = q (c - m)      p q |x - c|^2 = p q |x - m|^2 - 2 y.z + (p / q) |z|^2
// The first term is the same for all centres, so the nearest has the least key (p / q) |z|^2 - 2 y.z.
// Without the shift, float32 would lose the distances of data far from zero; the scales keep values of
// 1e30, and of 1e-30, in the range of float16.
//
// Product. y is rounded to float32, y', and that to float16, yh; what that leaves of it is yl, in float16
// again; zh and zl likewise, from float64. Tensor cores multiply float16 exactly and add in float32. By
// Cauchy and Schwarz, with |.| for lengths:
//     one product    |y.z - yh.zh|                   <= |y - yh| |z| + |yh| |z - zh|
//     three products |y.z - yh.zh - yl.zh - yh.zl|   <= |y - yh - yl| |z| + |yh + yl| |z - zh - zl| + |yl| |zl|
// Lengths of rows and of centres, |z - zh| and |z - zh - zl| are measured; for one product |y' - yh| too,
// as rounding to 11 bits loses about 2^-12.3 of a length, while unmeasured no more than 2^-11 is known.
//     |y - y'|        <= 2^-24 |y|: one rounding, in a fused multiply-add
//     |y' - yh|, |yl| <= 2^-11 |y'| + 2^-25 sqrt(width), the second for float16's denormals
//     |y' - yh - yl|  <= 2^-11 |y' - yh| + 2^-25 sqrt(width)
// Adding. A step of the tensor cores adds 16 products to a sum (PTX: at least single precision, any order
// and rounding). Known chips add 16, 8 or 4 at once, one after another: they cut every number but the
// largest, and then the sum, each time losing less than 2^-23 of the largest or of the sum. That is 17,
// 2 * 9 or 4 * 5 losses; kStep is 20. A chain of steps loses kStep of the largest partial sum at each; that
// is at most the sum before the chain plus |y| |z| of the chain's own columns. tests/ops/test_instructions.py
// looks for a product on the device that loses more.
//     one product: chains of 16 steps, 256 columns. Sums before a chain are looked at: `reach` is the
//         largest that a thread has. All chains: 16 kStep (|y| |z| + (chains - 1) reach).
//     three products: a chain is 32 columns, 6 steps from zero, 6 kStep |y| |z| over all columns, and the
//         chains' sums are added in float32: (width / 32 + 16) 2^-24 |y| |z|.
// For 512 columns this makes an error of about 2^-11.2 |y| |z| with one product, and 2^-16.4 with three.
//
// A label is to be that of distances rounded in float64, so their own error, under width 2^-53 of a
// distance, is part of the bound. So are key and bound themselves, computed in float32.
//
// A row is settled if the least upper bound of a key is below all other centres' lower bounds. NaN and
// infinity, whether features or an overflow, reach the length of yh and leave the row open.
#pragma once

#include "cuda/common.cuh"
#include "cuda/instructions.cuh"

namespace resque::cuda {

// The powers of two, from the largest values found; written once, read by every block.
struct Frame {
    unsigned largest_row, largest_center;  // bits of the float32 max |x - m| of some rows, max |c - m|
    float scale;                           // p
    float ratio;                           // q / p
};

// What the bounds need of a centre: its part of the key, and lengths, each rounded up.
struct alignas(16) Bound {
    float square;  // (p / q) |z|^2
    float length;  // at least |z|, |zh| and |zh + zl|
    float rest;    // |z - zh|
    float rest2;   // |z - zh - zl|
};

namespace {

constexpr int kChunk = 32;  // columns of rows and centres that are multiplied in one go, 64 bytes
constexpr int kChainColumns = 256;
constexpr float kStep = 20 / 8388608.0f;  // 20 * 2^-23
constexpr float kFloat = 1 / 16777216.0f;  // 2^-24, what rounding to float32 loses at most
constexpr float kTiny = 1 / 1152921504606846976.0f;  // 2^-60, more than squares lose to underflow

// A feature in the frame; `shift` is p m.
template <typename T>
__device__ __forceinline__ float to_frame(T x, float scale, float shift) {
    return fmaf(static_cast<float>(x), scale, -shift);
}
template <>
__device__ __forceinline__ float to_frame(double x, float scale, float shift) {
    return static_cast<float>(fma(x, static_cast<double>(scale), -static_cast<double>(shift)));
}

// Two values in float16, and in float16 what that leaves of them.
struct Split {
    uint32_t high, low;
};

// Adds their squares to *square; where `rest` is given, those of what float16 leaves to that.
__device__ __forceinline__ Split split(float a, float b, float* square, float* rest = nullptr) {
    const __half2 high = __floats2half2_rn(a, b);
    const float2 back = __half22float2(high);
    const float2 left = {a - back.x, b - back.y};  // exact
    *square = fmaf(back.x, back.x, fmaf(back.y, back.y, *square));
    if (rest) *rest = fmaf(left.x, left.x, fmaf(left.y, left.y, *rest));
    return {bits_of(high), bits_of(__floats2half2_rn(left.x, left.y))};
}

// How far the keys of one row may be off.
template <int kProducts>
struct Doubt {
    float on_length, on_rest, on_rest2, fixed;

    // The sums of squares of yh; 1% is more than all that is rounded on the way from there.
    __device__ __forceinline__ Doubt(float square, int64_t width, float ratio) {
        static_assert(kProducts == 3, "one product measures more");
        const float columns = static_cast<float>(width), denormals = kFloat * sqrtf(columns);
        const float length = 1.01f * sqrtf(square) + denormals;
        const float low = length / 2000 + denormals;
        const float adding = 6.1f * kStep + (columns / kChunk + 16) * 1.1f * kFloat;
        on_length = 2 * (low / 2000 + denormals + (4 * kFloat + adding) * length);
        on_rest = 2 * low;  // zl being what `rest` has more than `rest2`
        on_rest2 = 2 * length + on_rest;
        fixed = of_float64(columns, length, ratio);
    }

    // And those of y' - yh, and the largest sum before a chain.
    __device__ __forceinline__ Doubt(float square, float rest_square, float reach, int64_t width, float ratio) {
        static_assert(kProducts == 1, "three products measure less");
        const float columns = static_cast<float>(width), rest = 1.01f * sqrtf(rest_square) + kTiny;
        const float length = 1.01f * sqrtf(square) + rest;
        constexpr float kChain = kChainColumns / 16 * kStep;
        on_length = 2 * (rest + (4 * kFloat + kChain) * length);
        on_rest = 2 * length;
        on_rest2 = 0;
        const float chains = ceilf(columns / kChainColumns) - 1;
        fixed = of_float64(columns, length, ratio) + 2.1f * kChain * chains * reach;
    }

    // The error of distances in float64: 2 * width 2^-53 (|y|^2 q / p), and as much of the centre's square.
    static __device__ __forceinline__ float of_float64(float columns, float length, float ratio) {
        return columns * (kFloat * kFloat / 8) * length * (length * ratio);
    }

    __device__ __forceinline__ float of(const Bound& center) const {
        float sum = fmaf(16 * kFloat, center.square, fixed);
        sum = fmaf(on_length, center.length, sum);
        sum = fmaf(on_rest, center.rest, sum);
        return kProducts == 1 ? sum : fmaf(on_rest2, center.rest2, sum);
    }

    // Whether the bound is one: not after an overflow, nor for a row that is not finite.
    __device__ __forceinline__ bool holds() const { return on_length < 1 / kTiny; }
};

// The three least lower bounds of a row's keys, the centres of two of them, and the least upper bound.
struct Nearest {
    float low1, low2, low3, high;
    int first, second;

    __device__ __forceinline__ void clear() {
        low1 = low2 = low3 = high = INFINITY;
        first = second = 0;
    }
    // Nothing is known of the row.
    __device__ __forceinline__ void open() { low1 = low2 = low3 = -INFINITY, high = INFINITY; }

    __device__ __forceinline__ void insert(float low, int center) {
        const bool before1 = low < low1, before2 = low < low2;
        low3 = fminf(low3, fmaxf(low, low2));
        low2 = fminf(low2, fmaxf(low, low1));
        low1 = fminf(low1, low);
        second = before1 ? first : before2 ? center : second;
        first = before1 ? center : first;
    }
    __device__ __forceinline__ void merge(const Nearest& other) {
        insert(other.low1, other.first);
        insert(other.low2, other.second);
        low3 = fminf(low3, other.low3);
        high = fminf(high, other.high);
    }
    // With the lanes of the warp whose numbers differ from this one's in the bit `lanes`.
    __device__ __forceinline__ void merge_lanes(int lanes) {
        const auto theirs = [=](auto mine) { return __shfl_xor_sync(0xffffffffu, mine, lanes); };
        merge({theirs(low1), theirs(low2), theirs(low3), theirs(high), theirs(first), theirs(second)});
    }

    // A centre whose lower bound is above the least upper bound is not the nearest.
    __device__ __forceinline__ bool settled() const { return low2 > high; }
    __device__ __forceinline__ bool pair() const { return low3 > high; }
};

}  // namespace
}  // namespace resque::cuda
