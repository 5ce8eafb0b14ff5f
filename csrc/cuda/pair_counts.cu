// pair_counts on CUDA: a table in shared memory for every block where it fits, the result itself where
// it does not; integer atomics, so that no order ever shows.
//
// Bytes: the labels once, 16 a row of two int64: 22 us for 4 million at 3 TB/s. A block reads them eight
// rows a thread at a time, 64 KB in flight. What else there is to do for 100 x 100 cells: 31,775 rows on
// each of 132 multiprocessors, 32 at a time into shared memory, where random cells collide some four to
// a bank: 4,000 cycles; and 264 tables of 10,000 cells added to the result, 2.6 million atomics that
// fall on as many addresses as there are cells: some 20 us.
//
// Equal cells side by side, as of sorted labels, would be added one by one: a warp whose rows all have
// one cell adds 32 at once. In the result itself, where an atomic costs far more, the lanes of a warp
// that have one cell always add together.
#include "cuda/common.cuh"
#include "validate.h"

namespace resque::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kRowsInFlight = 8;
constexpr int kTile = kThreads * kRowsInFlight;
constexpr int kSharedCells = 12288;  // 48 KB, which every device gives without being asked
constexpr int64_t kBlocks = 264;     // two on each multiprocessor of the largest devices
constexpr unsigned kWholeWarp = 0xffffffffu;

template <typename LabelA, typename LabelB>
struct Job {
    const LabelA* labels_a;
    const LabelB* labels_b;
    int64_t stride_a, stride_b;
    int64_t n, count_a, count_b;
    int64_t* table;
    int64_t *status_a, *status_b;
};

// The cells of a tile's rows, -1 for a row without one: past the end, or with a label out of range.
template <typename LabelA, typename LabelB>
__device__ __forceinline__ void read_cells(const Job<LabelA, LabelB>& job, int64_t tile,
                                           int64_t (&cell)[kRowsInFlight]) {
    int64_t a[kRowsInFlight], b[kRowsInFlight];
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
        const int64_t i = min(tile * kTile + r * kThreads + threadIdx.x, job.n - 1);
        a[r] = job.labels_a[i * job.stride_a];
        b[r] = job.labels_b[i * job.stride_b];
    }
#pragma unroll
    for (int r = 0; r < kRowsInFlight; ++r) {
        const int64_t i = tile * kTile + r * kThreads + threadIdx.x;
        const bool good_a = a[r] >= 0 && a[r] < job.count_a;
        const bool good_b = b[r] >= 0 && b[r] < job.count_b;
        cell[r] = i < job.n && good_a && good_b ? a[r] * job.count_b + b[r] : -1;
        if (i < job.n && !good_a) atomic_max(&job.status_a[kBadLabelFromEnd], job.n - i);
        if (i < job.n && !good_b) atomic_max(&job.status_b[kBadLabelFromEnd], job.n - i);
    }
}

template <typename LabelA, typename LabelB>
__global__ void __launch_bounds__(kThreads)
    count_in_blocks(Job<LabelA, LabelB> job, int64_t tiles) {
    DYN_SHARED(uint32_t, count);
    const int cells = static_cast<int>(job.count_a * job.count_b);
    for (int c = threadIdx.x; c < cells; c += kThreads) count[c] = 0;
    __syncthreads();
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int64_t cell[kRowsInFlight];
        read_cells(job, tile, cell);
#pragma unroll
        for (int r = 0; r < kRowsInFlight; ++r) {
            const int mine = static_cast<int>(cell[r]), first = __shfl_sync(kWholeWarp, mine, 0);
            const bool all = __all_sync(kWholeWarp, mine == first);
            const bool adds = mine >= 0 && (!all || threadIdx.x % kWarp == 0);
            if (adds) atomicAdd(&count[mine], all ? kWarp : 1);
        }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < cells; c += kThreads) {
        if (count[c] > 0) atomic_add(&job.table[c], count[c]);
    }
}

template <typename LabelA, typename LabelB>
__global__ void __launch_bounds__(kThreads)
    count_in_result(Job<LabelA, LabelB> job, int64_t tiles) {
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int64_t cell[kRowsInFlight];
        read_cells(job, tile, cell);
#pragma unroll
        for (int r = 0; r < kRowsInFlight; ++r) {
            const unsigned same =
                __match_any_sync(kWholeWarp, static_cast<unsigned long long>(cell[r]));
            const unsigned below = same & ((1u << threadIdx.x % kWarp) - 1);
            if (cell[r] >= 0 && below == 0) atomic_add(&job.table[cell[r]], __popc(same));
        }
    }
}

// The labels themselves of the rows that were found wrong: two threads.
template <typename LabelA, typename LabelB>
__global__ void fetch_bad_labels(Job<LabelA, LabelB> job) {
    int64_t* status = threadIdx.x == 0 ? job.status_a : job.status_b;
    if (status[kBadLabelFromEnd] == 0) return;
    const int64_t i = job.n - status[kBadLabelFromEnd];
    status[kBadLabel] = threadIdx.x == 0 ? static_cast<int64_t>(job.labels_a[i * job.stride_a])
                                         : static_cast<int64_t>(job.labels_b[i * job.stride_b]);
}

template <typename LabelA, typename LabelB>
void launch(const PairCounts& a, cudaStream_t stream) {
    const Job<LabelA, LabelB> job{static_cast<const LabelA*>(a.labels_a),
                                  static_cast<const LabelB*>(a.labels_b),
                                  a.stride_a, a.stride_b, a.n, a.count_a, a.count_b, a.table,
                                  a.status_a, a.status_b};
    const int64_t tiles = ceil_div(a.n, kTile), cells = a.count_a * a.count_b;
    if (cells <= kSharedCells) {
        // A block reads two rows a cell at least, or adding its table would take longer than that.
        const int64_t blocks = min(kBlocks, ceil_div(a.n, max(int64_t{kTile}, 2 * cells)));
        LAUNCH((count_in_blocks<LabelA, LabelB>), blocks, kThreads, cells * sizeof(uint32_t), stream)
        (job, tiles);
    } else {
        LAUNCH((count_in_result<LabelA, LabelB>), min(4 * kBlocks, tiles), kThreads, 0, stream)
        (job, tiles);
    }
    LAUNCH((fetch_bad_labels<LabelA, LabelB>), 1, 2, 0, stream)(job);
    check(cudaGetLastError(), "pair_counts");
}

}  // namespace

int64_t pair_counts_workspace(int64_t, int64_t, int64_t) { return 0; }

void pair_counts(const PairCounts& a, int device, void* stream) {
    validate(a);
    if (a.n == 0) return;
    const DeviceGuard guard(device);
    const auto with = [&](auto label_a) {
        using LabelA = decltype(label_a);
        const auto s = static_cast<cudaStream_t>(stream);
        a.int64_b ? launch<LabelA, int64_t>(a, s) : launch<LabelA, int32_t>(a, s);
    };
    a.int64_a ? with(int64_t{}) : with(int32_t{});
}

}  // namespace resque::cuda
