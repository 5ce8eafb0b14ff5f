// lloyd_step on CUDA for features of one type: the frame, and the launches of few and of many centres.
#pragma once

#include "cuda/lloyd_step_exact.cuh"
#include "cuda/lloyd_step_layout.cuh"

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
    const unsigned largest_row = warp_max(__float_as_uint(row));
    const unsigned largest_center = warp_max(__float_as_uint(center));
    if (threadIdx.x > 0) return;
    atomicMax(&frame->largest_row, largest_row);
    atomicMax(&frame->largest_center, largest_center);
}

constexpr size_t kLeastShared = 64 << 10;  // that a block may have: compute capability 7.5

template <typename T>
struct Launch {
    const LloydStep& a;
    const int device;
    const cudaStream_t stream;
    const int64_t shared_memory = most_shared(device);  // that a block may have
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
        launch_split(a.centers, a.k, a.x.channels, padded, at<float>(layout.mean), frame(),
                     at<Bound>(layout.bounds), at<__half>(layout.panels), at<float>(layout.shift), a.rechecked,
                     a.counts, stream);
    }

    template <int kCenters, int kColumns>
    void few(const FewPlan& plan) const {
        prepare(kFewCenters);
        const Windows windows(a.x.n);
        const FewJob<T> job{x, a.x.n, a.x.channels, a.x.stride_n, aligned_to(16 / sizeof(T)), a.centers,
                            static_cast<int>(a.k), plan, windows, frame(), at<Bound>(layout.bounds),
                            at<uint4>(layout.panels), at<float>(layout.shift), a.labels, a.counts,
                            a.counts ? at<double>(layout.slots) : nullptr, at<double>(layout.spreads),
                            a.rechecked, a.status};
        allow_shared(step_few<T, kCenters, kColumns>, plan.bytes);
        LAUNCH((step_few<T, kCenters, kColumns>), windows.count, kFewThreads, plan.bytes, stream)(job);
        const int64_t size = a.k * a.x.channels;
        if (a.counts && size > 0) {
            launch_add_windows(job.slots, windows.count, size, a.sums, stream);
        }
        launch_add(job.spreads, windows.count, at<double>(layout.between), a.inertia, stream);
        if (a.distances) launch_measure(nullptr);
    }

    // Tiles of half as many centres where a block may not have enough shared memory for kTile.
    template <int kTile, int kProducts>
    void launch_sift(const ManyJob<T>& job) const {
        using Shared = SiftShared<kTile, kProducts>;
        if constexpr (sizeof(Shared) > kLeastShared) {
            if (static_cast<int64_t>(sizeof(Shared)) > shared_memory) return launch_sift<kTile / 2, kProducts>(job);
        }
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
        if (a.x.n == 0) {
            clear(a.rechecked, 8);
            clear(a.inertia, 8);
            if (a.counts) clear(a.counts, a.k * 8), clear(a.sums, a.k * a.x.channels * 8);
            return;
        }
        const FewPlan plan(a.x, a.k, shared_memory);
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

template <typename T>
void launch_lloyd(const LloydStep& a, int device, cudaStream_t stream) {
    Launch<T>{a, device, stream}.run();
}

}  // namespace resque::cuda
