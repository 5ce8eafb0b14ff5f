// lloyd_step on CUDA: distances in float64, rounded and added as resque.h says, and what they decide.
#pragma once

#include "cuda/common.cuh"
#include "resque.h"

namespace resque::cuda {
namespace {

constexpr int kOctet = 8;  // lanes that work out one distance, four at once in a warp
constexpr int kOctets = kWarp / kOctet;

__device__ __forceinline__ int octet() { return threadIdx.x % kWarp / kOctet; }

// The intrinsics are never fused into a multiply-add.
template <typename T>
__device__ __forceinline__ double squared_difference(T x, double c) {
    const double difference = __dsub_rn(to_double(x), c);
    return __dmul_rn(difference, difference);
}

// Up to 128 terms: lane l of an octet adds terms l, l + 8, ...; then the lanes' sums, then the last terms.
template <typename T>
__device__ __forceinline__ double sum_of_few(const T* x, const double* c, int n) {
    const int whole = n / kOctet * kOctet;
    double sum = 0;
#pragma unroll 4
    for (int i = threadIdx.x % kOctet; i < whole; i += kOctet) {
        sum = __dadd_rn(sum, squared_difference(x[i], c[i]));
    }
    for (int step = 1; step < kOctet; step *= 2) {
        sum = __dadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, step));
    }
    for (int i = whole; i < n; ++i) sum = __dadd_rn(sum, squared_difference(x[i], c[i]));
    return sum;
}

// The distance of a row and a centre of each octet, in all its lanes; the whole warp calls, with one n.
//
// The halves of halves are a tree whose leaves are taken from left to right. `path` holds the turns to
// the leaf at hand, bit d the one at depth d, 1 for right; where it turns right, the sum of the left
// half waits in lane d % 8 of the octet, in `near` for d below 8, else in `far`: 16 turns reach from a
// leaf of 64 columns or more to 2^22.
template <typename T>
__device__ double distance(const T* x, const double* c, int64_t n) {
    constexpr int kFew = 128;
    double near = 0, far = 0;
    unsigned path = 0;
    for (;;) {
        int64_t begin = 0, size = n;
        int depth = 0;
        for (; size > kFew; ++depth) {
            const int64_t half = size / 2 / kOctet * kOctet;
            const bool right = path >> depth & 1;
            begin += right ? half : 0;
            size = right ? size - half : half;
        }
        double sum = sum_of_few(x + begin, c + begin, static_cast<int>(size));
        for (; depth > 0 && (path >> (depth - 1) & 1); --depth) {
            const int turn = depth - 1;
            sum = __dadd_rn(__shfl_sync(0xffffffffu, turn < 8 ? near : far, turn % 8, kOctet), sum);
            path ^= 1u << turn;
        }
        if (depth == 0) return sum;
        const int turn = depth - 1;
        if (static_cast<int>(threadIdx.x % kOctet) == turn % 8) (turn < 8 ? near : far) = sum;
        path |= 1u << turn;
    }
}
constexpr int64_t kMaxColumns = int64_t{1} << 22;

// The nearest of the centres looked at: a NaN is never nearer, nor is the same distance at a later index.
struct Best {
    double distance = INFINITY;
    int center = INT32_MAX;

    __device__ __forceinline__ void look_at(double other, int index) {
        if (other < distance || (other == distance && index < center)) distance = other, center = index;
    }
    // With the lanes whose numbers differ from this one's in the bit `lanes`.
    __device__ __forceinline__ void merge_lanes(int lanes) {
        const double other = __shfl_xor_sync(0xffffffffu, distance, lanes);
        look_at(other, __shfl_xor_sync(0xffffffffu, center, lanes));
    }
    // No distance is finite: of features that are not, or of such that overflow.
    __device__ __forceinline__ bool nowhere() const { return !is_finite(distance); }
};

}  // namespace
}  // namespace resque::cuda
