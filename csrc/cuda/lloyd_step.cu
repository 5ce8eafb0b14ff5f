// lloyd_step on CUDA.
//
// A product of low precision tells of nearly every row which centre is nearest, with proof; the rows
// that it leaves open are decided by distances in float64. lloyd_step_bounds.cuh has the arithmetic.
// Labels so are those of the float64 distances, whatever the features; only the time depends on them.
//   Few centres: one kernel reads the features once, for labels and sums (lloyd_step_few.cuh).
//   Many: labels first (lloyd_step_many.cuh), then the rows in the order of their labels are added by
//   class_moments: the features are read twice.
// Either way float64 features are rounded to float32 behind the shift, where the bounds know of it.
//
// What comes before is small: find_frame reads the centres and 64 rows, split_centers the centres.
// lloyd_step_launch.cuh puts these steps in order; here is what the type of the features has no part in.
// Nothing waits for the host: how many rows are open, a kernel reads from memory.
#include "cuda/lloyd_step_layout.cuh"
#include "dispatch.h"
#include "validate.h"

namespace resque::cuda {
namespace {

// n with 2^8 <= 2^n value < 2^9; 0 for zero and for what is not finite. 118 keeps 2^n and its inverse
// among the floats.
__device__ __forceinline__ int scale_of(unsigned value) {
    const int exponent = static_cast<int>(value >> 23);
    return value == 0 || exponent == 255 ? 0 : max(-118, min(118, 8 - (exponent - 127)));
}

__device__ __forceinline__ float power_of_two(int n) {
    return __uint_as_float(static_cast<unsigned>(max(-126, min(127, n)) + 127) << 23);
}

constexpr int kSplitThreads = 128;

// One block a centre, also of those that pad the panels: split to float16, measured, stored. What the
// kernels behind this one count starts at zero.
__global__ void __launch_bounds__(kSplitThreads)
    split_centers(const double* centers, int64_t k, int64_t width, int64_t chunks, const float* mean,
                  Frame* frame, Bound* bounds, __half* panels, float* shift, int64_t* rechecked, int64_t* counts) {
    constexpr int kWarps = kSplitThreads / kWarp;
    SHARED(double, parts, [3][kWarps]);
    const int64_t center = blockIdx.x, padded = gridDim.x;
    const int center_scale = scale_of(frame->largest_center);
    // Rows that all are m, and no largest value: the centres' scale will do.
    const int row_scale = frame->largest_row ? scale_of(frame->largest_row) : center_scale;
    const float p = power_of_two(row_scale);
    double square = 0, rest = 0, rest2 = 0;
    for (int64_t c = threadIdx.x; c < chunks * kChunk; c += kSplitThreads) {
        const float moved = c < width ? mean[c] * p : 0;
        double z = 0;
        if (center < k && c < width) {
            // m is what the rows' shift stands for, were it rounded
            const double m = static_cast<double>(moved) * power_of_two(-row_scale);
            z = (centers[center * width + c] - m) * power_of_two(center_scale);
        }
        const __half high = __float2half_rn(static_cast<float>(z));
        const double without_high = z - to_double(high);
        const __half low = __float2half_rn(static_cast<float>(without_high));
        const double without_low = without_high - to_double(low);
        square += z * z;
        rest += without_high * without_high;
        rest2 += without_low * without_low;
        const int64_t at = (c / kChunk * padded + center) * kChunk + c % kChunk;
        panels[at] = high;
        panels[at + chunks * padded * kChunk] = low;
        if (center == 0) shift[c] = moved;
    }
    for (int step = kWarp / 2; step > 0; step /= 2) {
        square += __shfl_xor_sync(0xffffffffu, square, step);
        rest += __shfl_xor_sync(0xffffffffu, rest, step);
        rest2 += __shfl_xor_sync(0xffffffffu, rest2, step);
    }
    if (threadIdx.x % kWarp == 0) {
        const int warp = threadIdx.x / kWarp;
        parts[0][warp] = square, parts[1][warp] = rest, parts[2][warp] = rest2;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int w = 1; w < kWarps; ++w) square += parts[0][w], rest += parts[1][w], rest2 += parts[2][w];
    constexpr double kUp = 1.001;  // more than all the rounding here
    Bound bound;
    bound.square = static_cast<float>(square * exp2(static_cast<double>(row_scale - center_scale)));
    bound.length = static_cast<float>(kUp * (sqrt(square) + sqrt(rest)));
    bound.rest = static_cast<float>(kUp * sqrt(rest));
    bound.rest2 = static_cast<float>(kUp * sqrt(rest2));
    if (!(bound.square < 1e30f)) bound.square = 0, bound.length = INFINITY;  // a bound that never decides
    if (center >= k) bound = {1e38f, 0, 0, 0};                              // far from every row
    bounds[center] = bound;
    if (counts && center < k) counts[center] = 0;
    if (center == 0) {
        *rechecked = 0;
        frame->scale = p;
        frame->ratio = power_of_two(center_scale - row_scale);
    }
}

constexpr int kAddThreads = 256;

// Each block adds its part of the numbers, in an order that depends on their count alone.
__global__ void __launch_bounds__(kAddThreads) add_parts(const double* parts, int64_t count, double* sums) {
    constexpr int kWarps = kAddThreads / kWarp;
    SHARED(double, warp_sums, [kWarps]);
    const int64_t size = ceil_div(count, gridDim.x), end = min((blockIdx.x + int64_t{1}) * size, count);
    double sum = 0;
#pragma unroll 8
    for (int64_t i = blockIdx.x * size + threadIdx.x; i < end; i += kAddThreads) sum += parts[i];
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int w = 1; w < kWarps; ++w) sum += warp_sums[w];
    sums[blockIdx.x] = sum;
}

constexpr int kSlotParts = 32;

// blockDim (32 columns, 32 parts of the windows): the windows' sums, in their order.
__global__ void __launch_bounds__(kWarp* kSlotParts)
    add_windows(const double* slots, int64_t windows, int64_t size, double* sums) {
    SHARED(double, part_sum, [kSlotParts][kWarp]);
    const int64_t column = blockIdx.x * int64_t{kWarp} + threadIdx.x, part = ceil_div(windows, kSlotParts);
    const int64_t end = min((threadIdx.y + 1) * part, windows);
    double sum = 0;
    if (column < size) {
#pragma unroll 8
        for (int64_t w = threadIdx.y * part; w < end; ++w) sum += slots[w * size + column];
    }
    part_sum[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= size) return;
    for (int p = 1; p < kSlotParts; ++p) sum += part_sum[p][threadIdx.x];
    sums[column] = sum;
}

}  // namespace

void launch_split(const double* centers, int64_t k, int64_t width, int64_t padded, const float* mean,
                  Frame* frame, Bound* bounds, __half* panels, float* shift, int64_t* rechecked,
                  int64_t* counts, cudaStream_t stream) {
    LAUNCH((split_centers), padded, kSplitThreads, 0, stream)(centers, k, width, ceil_div(width, kChunk), mean,
                                                              frame, bounds, panels, shift, rechecked, counts);
}

void launch_add(const double* parts, int64_t count, double* between, double* sum, cudaStream_t stream) {
    const int64_t adders = min(ceil_div(count, 8 * kAddThreads), kMostAdders);
    if (adders > 1) {
        LAUNCH((add_parts), adders, kAddThreads, 0, stream)(parts, count, between);
        parts = between, count = adders;
    }
    LAUNCH((add_parts), 1, kAddThreads, 0, stream)(parts, count, sum);
}

void launch_add_windows(const double* slots, int64_t windows, int64_t size, double* sums, cudaStream_t stream) {
    LAUNCH((add_windows), ceil_div(size, kWarp), dim3(kWarp, kSlotParts), 0, stream)(slots, windows, size, sums);
}

int64_t lloyd_step_workspace(const Features& x, int64_t k, bool update) { return Layout(x, k, update).bytes; }

void lloyd_step(const LloydStep& a, int device, void* stream) {
    validate(a);
    expect(a.x.channels <= kMaxColumns, "channels", "at most 4,194,304 on CUDA", a.x.channels);
    const DeviceGuard guard(device);
    dispatch<__half, __nv_bfloat16>(a.x.dtype, [&](auto type) {
        launch_lloyd<typename decltype(type)::type>(a, device, static_cast<cudaStream_t>(stream));
    });
    check(cudaGetLastError(), "lloyd_step");
}

}  // namespace resque::cuda
