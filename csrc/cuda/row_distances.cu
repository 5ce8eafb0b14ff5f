// row_distances on CUDA: the launcher, and the sums over the pairs. The kernels that measure are in
// row_distances_short.cuh and row_distances_long.cu.
#include "cuda/row_distances_job.cuh"
#include "cuda/spatial_mean.cuh"
#include "dispatch.h"
#include "validate.h"

namespace resque::cuda {
namespace {

constexpr int64_t kFewestTiles = 1024;  // that keep an H100 busy: two warps for each of its schedulers
constexpr int64_t kMostWarps = 8192;
constexpr int kAddThreads = 256;

// One block a sum: threads take every 256th slot, then their sums meet in a tree.
__global__ void __launch_bounds__(kAddThreads)
    add_partial(const double* partial, int64_t slots, double* sums) {
    SHARED(double, part, [kAddThreads]);
    double sum = 0;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < slots; i += kAddThreads) sum += partial[blockIdx.x * slots + i];
    part[threadIdx.x] = sum;
    for (int step = kAddThreads / 2; step > 0; step /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < step) part[threadIdx.x] += part[threadIdx.x + step];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = part[0];
}

// The workspace: sums of the warps, marks, the means where there is something to average, and what the
// long rows need.
struct Layout {
    int64_t slots, partial_bytes, marks, means, long_rows, bytes;

    Layout(const Features& x, int64_t bin_counts, int64_t all_bins, bool shared) {
        const int64_t value_bytes = x.dtype == DType::float64 ? 8 : 4;
        slots = max(share(x.n).warps, long_slots(x.n));
        partial_bytes = bin_counts * (shared ? 8 : 4) * slots * 8;
        marks = aligned(partial_bytes);
        means = marks + aligned(share(x.n).tiles * 4);
        long_rows = means + (x.positions > 1 ? 2 * mean_bytes(x) : 0);
        bytes = long_rows + long_workspace(x.n, x.channels, value_bytes, all_bins, shared);
    }

    // A warp measures 32 pairs side by side, but fewer where that would leave warps without work.
    static Share share(int64_t n) {
        int64_t pairs = kWarp;
        while (pairs > 1 && n / pairs < kFewestTiles) pairs /= 2;
        return Share(n, pairs, kMostWarps);
    }
    static int64_t mean_bytes(const Features& x) {
        return aligned(x.n * x.channels * (x.dtype == DType::float64 ? 8 : 4));
    }
    static int64_t aligned(int64_t bytes) { return ceil_div(bytes, 16) * 16; }
};

// The numbers of bins, each taken up once: bins / 2, / 4, ... that were asked for too are counted with it,
// but not across the limit of launch_short.
template <typename Use>
void for_each_levels(const RowDistances& a, Use use) {
    bool taken[kMaxBinCounts] = {};
    int offsets[kMaxBinCounts], all = 0;
    for (int k = 0; k < a.bin_counts; ++k) {
        offsets[k] = all;
        all += a.bins[k];
    }
    for (;;) {
        Levels levels{0, 0, {}, {}, {}};
        for (int k = 0; k < a.bin_counts; ++k) {
            if (!taken[k]) levels.base = max(levels.base, a.bins[k]);
        }
        if (levels.base == 0) return;
        for (int level = 0; level < kMostLevels; ++level) {
            levels.place[level] = -1;
            if (levels.base % (1 << level) != 0) continue;
            const int bins = levels.base >> level;
            levels.inverse[level] = 1.0 / bins;
            if (level > 0 && bins <= kMostBins && levels.base > kMostBins) continue;
            for (int k = 0; k < a.bin_counts; ++k) {
                if (taken[k] || a.bins[k] != bins) continue;
                taken[k] = true;
                levels.place[level] = k;
                levels.offset[level] = offsets[k];
                levels.count = level + 1;
                break;
            }
        }
        use(levels, all);
    }
}

template <typename T>
void launch_rows(const RowDistances& a, const Layout& layout, const T* old, int64_t stride_old,
                 const T* fresh, int64_t stride_new, int64_t most_shared, cudaStream_t stream) {
    char* space = static_cast<char*>(a.workspace);
    double* partial = reinterpret_cast<double*>(space);
    bool first = true;
    for_each_levels(a, [&](const Levels& levels, int64_t all_bins) {
        const int64_t n = a.x_old.n, m = a.x_old.channels;
        const Job<T> job{{n, m, 1.0 / static_cast<double>(m), levels,
                          Layout::share(n), a.shared, a.skip_nonfinite, first,
                          a.bin_counts, all_bins, partial, layout.slots,
                          reinterpret_cast<uint32_t*>(space + layout.marks), a.rows, a.counts,
                          a.float64_edges, {a.status_old, a.status_new}, a.left_out},
                         {old, fresh},
                         {stride_old, stride_new}};
        if (!launch_short(job, most_shared, stream)) launch_long(job, space + layout.long_rows, stream);
        first = false;
    });
}

template <typename T>
void launch(const RowDistances& a, const Layout& layout, int64_t most_shared, cudaStream_t stream) {
    const Features &x = a.x_old, &y = a.x_new;
    if (x.positions == 1) {
        launch_rows<T>(a, layout, static_cast<const T*>(x.data), x.stride_n,
                       static_cast<const T*>(y.data), y.stride_n, most_shared, stream);
        return;
    }
    using Mean = Binned<T>;
    char* means = static_cast<char*>(a.workspace) + layout.means;
    Mean* old = reinterpret_cast<Mean*>(means);
    Mean* fresh = reinterpret_cast<Mean*>(means + Layout::mean_bytes(x));
    launch_spatial_mean(x, old, stream);
    launch_spatial_mean(y, fresh, stream);
    launch_rows<Mean>(a, layout, old, x.channels, fresh, y.channels, most_shared, stream);
}

}  // namespace

int64_t row_distances_workspace(const Features& x, int64_t bin_counts, int64_t all_bins, bool shared) {
    return Layout(x, bin_counts, all_bins, shared).bytes;
}

void row_distances(const RowDistances& a, int device, void* stream) {
    validate(a);
    const DeviceGuard guard(device);
    const auto s = static_cast<cudaStream_t>(stream);
    int64_t all_bins = 0;
    for (int64_t k = 0; k < a.bin_counts; ++k) all_bins += a.bins[k];
    const Layout layout(a.x_old, a.bin_counts, all_bins, a.shared);
    const int64_t values = a.bin_counts * (a.shared ? 8 : 4);
    check(cudaMemsetAsync(a.float64_edges, 0, a.bin_counts * 8, s), "cudaMemsetAsync");
    check(cudaMemsetAsync(a.left_out, 0, 8, s), "cudaMemsetAsync");
    if (a.x_old.n > 0) {
        check(cudaMemsetAsync(a.workspace, 0, layout.partial_bytes, s), "cudaMemsetAsync");
        dispatch<__half, __nv_bfloat16>(a.x_old.dtype, [&](auto type) {
            launch<typename decltype(type)::type>(a, layout, most_shared(device), s);
        });
    }
    LAUNCH((add_partial), values, kAddThreads, 0, s)(static_cast<const double*>(a.workspace),
                                                     layout.slots, a.sums);
    check(cudaGetLastError(), "row_distances");
}

}  // namespace resque::cuda
