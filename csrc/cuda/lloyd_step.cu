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
// Nothing waits for the host: how many rows are open, a kernel reads from memory.
#include "cuda/class_moments.cuh"
#include "cuda/lloyd_step_bounds.cuh"
#include "cuda/lloyd_step_exact.cuh"
#include "cuda/lloyd_step_few.cuh"
#include "cuda/lloyd_step_many.cuh"
#include "dispatch.h"
#include "validate.h"

namespace resque::cuda {
namespace {

constexpr int64_t kSampleRows = 64;
constexpr int kFrameParts = 32;

// blockDim (32 columns, 32 parts of the centres and of the sample): the shift, and the largest values
// behind it. The shift needs no precision, only to be one and the same for all.
template <typename T>
__global__ void __launch_bounds__(kWarp* kFrameParts)
    find_frame(const T* x, int64_t n, int64_t width, int64_t stride_n, const double* centers, int64_t k,
               float* mean, Frame* frame) {
    SHARED(double, part_sum, [kFrameParts][kWarp]);
    const int64_t column = blockIdx.x * int64_t{kWarp} + threadIdx.x;
    const bool inside = column < width;
    double sum = 0;
    for (int64_t c = threadIdx.y; inside && c < k; c += kFrameParts) sum += centers[c * width + column];
    part_sum[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    sum = 0;
    for (int p = 0; p < kFrameParts; ++p) sum += part_sum[p][threadIdx.x];
    float shift = static_cast<float>(sum / static_cast<double>(k));
    if (!is_finite(static_cast<double>(shift))) shift = 0;
    if (inside && threadIdx.y == 0) mean[column] = shift;

    float row = 0, center = 0;
    for (int64_t c = threadIdx.y; inside && c < k; c += kFrameParts) {
        center = fmaxf(center, static_cast<float>(fabs(centers[c * width + column] - shift)));
    }
    const int64_t rows = min(n, kSampleRows);
    for (int64_t r = threadIdx.y; inside && r < rows; r += kFrameParts) {
        const double away = fabs(to_double(x[n / rows * r * stride_n + column]) - shift);
        if (is_finite(away)) row = fmaxf(row, static_cast<float>(away));
    }
    // Floats that are not negative are ordered as their bits are.
    const unsigned largest_row = __reduce_max_sync(0xffffffffu, __float_as_uint(row));
    const unsigned largest_center = __reduce_max_sync(0xffffffffu, __float_as_uint(center));
    if (threadIdx.x > 0) return;
    atomicMax(&frame->largest_row, largest_row);
    atomicMax(&frame->largest_center, largest_center);
}

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

// One block a centre, also of those that pad the panels: split to float16, measured, stored.
__global__ void __launch_bounds__(kSplitThreads)
    split_centers(const double* centers, int64_t k, int64_t width, int64_t chunks, const float* mean,
                  Frame* frame, Bound* bounds, __half* panels, float* shift) {
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
    if (center == 0) {
        frame->scale = p;
        frame->ratio = power_of_two(center_scale - row_scale);
    }
}

constexpr int kAddThreads = 256;
constexpr int64_t kMostAdders = 256;

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

void launch_add(const double* parts, int64_t count, double* between, double* sum, cudaStream_t stream) {
    const int64_t adders = min(ceil_div(count, 8 * kAddThreads), kMostAdders);
    if (adders > 1) {
        LAUNCH((add_parts), adders, kAddThreads, 0, stream)(parts, count, between);
        parts = between, count = adders;
    }
    LAUNCH((add_parts), 1, kAddThreads, 0, stream)(parts, count, sum);
}

int64_t aligned(int64_t bytes) { return ceil_div(bytes, 256) * 256; }

constexpr int kNarrow = 128, kWide = 256;  // centres of a tile of the product

// Which tiles there are, and in how many shares blocks side by side take them.
struct Tiles {
    int64_t size, padded, splits;

    Tiles(const Features& x, int64_t k) {
        size = k > kNarrow ? kWide : kNarrow;
        padded = ceil_div(k, size) * size;
        // A tile of rows that all resident blocks hold, 2 * 132 of 128, stays in the L2 from one tile of
        // centres to the next if its rows have up to 1 KB. Wider rows are read by blocks side by side
        // instead, whose 24 bytes a row are then few beside the row.
        const int64_t bytes = x.channels * (x.dtype == DType::float64 ? 8 : x.dtype == DType::float32 ? 4 : 2);
        splits = bytes > 1024 ? min(padded / size, int64_t{4}) : 1;
    }
};

// The workspace. What labels need and what sums need is never there at the same time.
struct Layout {
    int64_t counters, mean, shift, bounds, panels, between, spreads, shared, bytes;
    int64_t nearest, listed, left;          // for labels of many
    int64_t order, offsets, status, space;  // for sums of many
    int64_t slots;                          // for both of few

    Layout(const Features& x, int64_t k, bool update) {
        const int64_t columns = ceil_div(x.channels, kChunk) * kChunk;
        const Tiles tiles(x, k);
        const Windows windows(x.n);
        int64_t end = 0;
        const auto take = [&end](int64_t size) {
            const int64_t at = end;
            end += aligned(size);
            return at;
        };
        counters = take(2 * sizeof(int64_t) + sizeof(Frame));
        mean = take(columns * 4);
        shift = take(columns * 4);
        bounds = take(tiles.padded * static_cast<int64_t>(sizeof(Bound)));
        panels = take(2 * tiles.padded * columns * 2);
        between = take(kMostAdders * 8);
        spreads = take(max(max(spread_parts(x), ceil_div(x.n, kMeasuredRows)), windows.count) * 8);
        shared = end;
        nearest = take(tiles.splits * x.n * static_cast<int64_t>(sizeof(Nearest)));
        listed = take(x.n * 4);
        left = take(x.n * 4);
        bytes = end;
        if (!update) return;
        end = shared;
        order = take(x.n * 4);
        offsets = take((k + 1) * 8);
        status = take(kStatusWords * 8);
        space = take(max(class_order_workspace(x.n, k, 1), class_moments_workspace(x, k, false)));
        bytes = max(bytes, end);
        end = shared;
        slots = take(k <= kFewCenters ? windows.count * k * x.channels * 8 : 0);
        bytes = max(bytes, end);
    }
};

template <typename T>
struct Launch {
    const LloydStep& a;
    const int device;
    const cudaStream_t stream;
    const Layout layout{a.x, a.k, a.counts != nullptr};
    const T* x = static_cast<const T*>(a.x.data);

    template <typename U>
    U* at(int64_t offset) const {
        return reinterpret_cast<U*>(static_cast<char*>(a.workspace) + offset);
    }
    int64_t* counter(int which) const { return at<int64_t>(layout.counters) + which; }
    Frame* frame() const { return reinterpret_cast<Frame*>(counter(2)); }
    int64_t chunks() const { return ceil_div(a.x.channels, kChunk); }
    // Whether rows can be read in packs of `pack`.
    bool aligned_to(int64_t pack) const {
        return reinterpret_cast<uintptr_t>(x) % (pack * sizeof(T)) == 0 && a.x.stride_n % pack == 0 &&
               a.x.channels % pack == 0;
    }
    void clear(void* memory, int64_t bytes) const {
        check(cudaMemsetAsync(memory, 0, bytes, stream), "cudaMemsetAsync");
    }

    void prepare(int64_t padded) const {
        clear(counter(0), 2 * sizeof(int64_t) + sizeof(Frame));
        if (a.x.channels > 0) {
            LAUNCH((find_frame<T>), ceil_div(a.x.channels, kWarp), dim3(kWarp, kFrameParts), 0, stream)(
                x, a.x.n, a.x.channels, a.x.stride_n, a.centers, a.k, at<float>(layout.mean), frame());
        }
        LAUNCH((split_centers), padded, kSplitThreads, 0, stream)(
            a.centers, a.k, a.x.channels, chunks(), at<float>(layout.mean), frame(), at<Bound>(layout.bounds),
            at<__half>(layout.panels), at<float>(layout.shift));
    }

    template <int kCenters, int kColumns>
    void few(const FewPlan& plan) const {
        prepare(kFewCenters);
        const Windows windows(a.x.n);
        if (a.counts) clear(a.counts, a.k * 8);
        const FewJob<T> job{x, a.x.n, a.x.channels, a.x.stride_n, aligned_to(16 / sizeof(T)), a.centers,
                            static_cast<int>(a.k), plan, windows, frame(), at<Bound>(layout.bounds),
                            at<uint4>(layout.panels), at<float>(layout.shift), a.labels, a.counts,
                            a.counts ? at<double>(layout.slots) : nullptr, at<double>(layout.spreads),
                            a.rechecked, a.status};
        allow_shared(step_few<T, kCenters, kColumns>, plan.bytes);
        LAUNCH((step_few<T, kCenters, kColumns>), windows.count, kFewThreads, plan.bytes, stream)(job);
        const int64_t size = a.k * a.x.channels;
        if (a.counts && size > 0) {
            LAUNCH((add_windows), ceil_div(size, kWarp), dim3(kWarp, kSlotParts), 0, stream)(
                job.slots, windows.count, size, a.sums);
        }
        launch_add(job.spreads, windows.count, at<double>(layout.between), a.inertia, stream);
        if (a.distances) launch_measure(nullptr);
    }

    template <int kTile, int kProducts>
    void launch_sift(const ManyJob<T>& job) const {
        using Shared = SiftShared<kTile, kProducts>;
        // Listed rows are few, and how many is not known here.
        const int64_t tiles = min(ceil_div(a.x.n, kSiftRows), kProducts == 1 ? int64_t{1} << 28 : int64_t{528});
        allow_shared(sift<T, kTile, kProducts>, sizeof(Shared));
        LAUNCH((sift<T, kTile, kProducts>), tiles * job.splits, kSiftThreads, sizeof(Shared), stream)(job);
    }

    void many() const {
        const Tiles tiles(a.x, a.k);
        prepare(tiles.padded);
        const ManyJob<T> job{x, a.x.n, a.x.channels, a.x.stride_n, aligned_to(sizeof(T) == 8 ? 2 : 4), a.centers,
                             a.k, tiles.padded, static_cast<int>(chunks()), tiles.splits, frame(),
                             at<Bound>(layout.bounds), at<uint4>(layout.panels), at<float>(layout.shift), a.labels,
                             at<Nearest>(layout.nearest), at<int32_t>(layout.listed), at<int32_t>(layout.left),
                             counter(0), counter(1), a.rechecked, a.status};
        tiles.size == kWide ? launch_sift<kWide, 1>(job) : launch_sift<kNarrow, 1>(job);
        const int64_t blocks = ceil_div(a.x.n, kSettleThreads);
        LAUNCH((settle<T, true>), blocks, kSettleThreads, 0, stream)(job);
        launch_sift<kNarrow, 3>(job);
        LAUNCH((settle<T, false>), min(blocks, int64_t{1024}), kSettleThreads, 0, stream)(job);
        LAUNCH((settle_rest<T>), min(a.x.n, int64_t{1024}), kSettleThreads, 0, stream)(job);

        double* spreads = at<double>(layout.spreads);
        if (a.counts) {
            add_rows(spreads);
            launch_add(spreads, spread_parts(a.x), at<double>(layout.between), a.inertia, stream);
            if (a.distances) launch_measure(nullptr);
        } else {
            launch_measure(spreads);
            launch_add(spreads, ceil_div(a.x.n, kMeasuredRows), at<double>(layout.between), a.inertia, stream);
        }
    }

    // What is not finite is in the status already.
    void add_rows(double* spreads) const {
        int64_t* status = at<int64_t>(layout.status);
        clear(status, kStatusWords * 8);
        class_order({a.labels, true, 1, a.x.n, a.k, 1, nullptr, at<int32_t>(layout.order),
                     at<int64_t>(layout.offsets), status, at<void>(layout.space)},
                    device, stream);
        class_spreads({a.x, at<int32_t>(layout.order), at<int64_t>(layout.offsets), a.k, false, false, a.counts,
                       a.sums, nullptr, status, at<void>(layout.space)},
                      a.centers, spreads, stream);
    }

    void launch_measure(double* parts) const {
        const int64_t threads = ceil_div(a.x.n, kMeasuredRows) * kOctet;
        LAUNCH((measure<T>), ceil_div(threads, kSettleThreads), kSettleThreads, 0, stream)(
            x, a.x.n, a.x.channels, a.x.stride_n, a.centers, a.labels, a.distances, parts);
    }

    void run() const {
        clear(a.rechecked, 8);
        if (a.x.n == 0) {
            clear(a.inertia, 8);
            if (a.counts) clear(a.counts, a.k * 8), clear(a.sums, a.k * a.x.channels * 8);
            return;
        }
        int most_shared = 0;
        check(cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
              "cudaDeviceGetAttribute");
        const FewPlan plan(a.x, a.k, most_shared);
        if (!plan.fits) {
            many();
        } else if (a.x.channels <= kFewThreads) {
            few<kFewCenters, 1>(plan);
        } else if constexpr (kFewRow / sizeof(T) > kFewThreads) {
            few<kFewCenters / 2, 2>(plan);
        }
    }
};

}  // namespace

int64_t lloyd_step_workspace(const Features& x, int64_t k, bool update) { return Layout(x, k, update).bytes; }

void lloyd_step(const LloydStep& a, int device, void* stream) {
    validate(a);
    expect(a.x.channels <= kMaxColumns, "channels", "at most 4,194,304 on CUDA", a.x.channels);
    const DeviceGuard guard(device);
    dispatch<__half, __nv_bfloat16>(a.x.dtype, [&](auto type) {
        Launch<typename decltype(type)::type>{a, device, static_cast<cudaStream_t>(stream)}.run();
    });
    check(cudaGetLastError(), "lloyd_step");
}

}  // namespace resque::cuda
