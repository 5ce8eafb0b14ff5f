// class_moments on CUDA: the class sums behind RESQUE_dist.
//
// The rows, grouped by class_order, are cut into windows of equally many. A thread walks one window
// for its own few columns, eight rows in flight, and adds in float64 registers: no atomics, no shared
// memory, no barrier. A run of rows that is its whole group writes the result. A group that two windows
// share is finished by the one in which it begins, which adds both parts itself. Of a longer group each
// window writes its part to a slot of the workspace, and add_slots then adds the slots of a group in their
// order. One code for 10 classes and for 100,000: a thread never walks more than two windows.
//
// A sum is finite exactly when all it added was (float64 has room for any number of narrower floats),
// so looking for NaN and infinity costs nothing: a window whose sums are not finite is marked, and
// mend_windows, which finds nothing marked on ordinary data, reads it again to say where, and to leave
// the rows out if asked.
//
// Bytes: features once; 12 bytes of order a row; slots, of 16 bytes a column, written and read: one a
// window for few classes, 32 / (window rows * sizeof(T)) of the features, 3% at 256 rows of float32, and
// next to none for classes that are smaller than a window. Several spatial positions are first averaged by
// spatial_mean, which writes 1 / positions of what it reads.
#include "cuda/class_moments.cuh"
#include "cuda/class_moments_slots.cuh"
#include "cuda/common.cuh"
#include "cuda/spatial_mean.cuh"
#include "dispatch.h"
#include "validate.h"

namespace resque::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRowsInFlight = 8;

// Enough windows to fill the device several times over, 4,096 blocks of 128 threads, but none under 16
// rows and none over 512. A function of the sizes alone, so that results are too.
int64_t window_rows(int64_t n, int64_t channels) {
    const int64_t blocks_a_window = ceil_div(channels, 512);
    int64_t rows = 16;
    while (rows < 512 && n * blocks_a_window / rows > 4096) rows *= 2;
    return rows;
}

template <typename T>
struct Job : Task {
    const T* x;  // [n, channels]
};

// Sums of V columns of one run of rows.
template <int V, Second kSecond>
struct Sums {
    static constexpr bool kSquares = kSecond == Second::kSquares, kSpread = kSecond == Second::kSpread;
    double sum[V];
    double sumsq[kSquares ? V : 1];
    double center[kSpread ? V : 1], spread = 0;

    // Before the first row of a group; its center's columns are those from `at`.
    __device__ __forceinline__ void begin(const double* centers, int64_t at) {
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = 0;
#pragma unroll
        for (int v = 0; v < (kSquares ? V : 1); ++v) sumsq[v] = 0;
#pragma unroll
        for (int v = 0; v < (kSpread ? V : 0); ++v) center[v] = centers[at + v];
    }

    template <typename T>
    __device__ __forceinline__ void add(const Pack<T, V>& x) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const double value = to_double(x.value[v]);
            sum[v] += value;
            if (kSquares) sumsq[v] += value * value;
            if (kSpread) spread += (value - center[v]) * (value - center[v]);
        }
    }

    __device__ __forceinline__ bool finite() const {
        bool all = true;
#pragma unroll
        for (int v = 0; v < V; ++v) all = all && is_finite(sum[v]);
        return all;
    }

    // What stands there comes first.
    __device__ __forceinline__ void add_to(const double* sum_out, const double* sumsq_out) {
        for_pairs([&](int v) {
            const auto before = load_pack<double, kPair>(sum_out + v);
#pragma unroll
            for (int i = 0; i < kPair; ++i) sum[v + i] = before.value[i] + sum[v + i];
            if constexpr (kSquares) {
                const auto square = load_pack<double, kPair>(sumsq_out + v);
#pragma unroll
                for (int i = 0; i < kPair; ++i) sumsq[v + i] = square.value[i] + sumsq[v + i];
            }
        });
    }

    __device__ __forceinline__ void write(double* sum_out, double* sumsq_out) const {
        for_pairs([&](int v) {
            store(sum_out + v, &sum[v]);
            if constexpr (kSquares) store(sumsq_out + v, &sumsq[v]);
        });
    }

   private:
    // Sums go to memory by 16 bytes, so that fewer of the stores write a part of 32 bytes.
    static constexpr int kPair = V > 1 ? 2 : 1;

    static __device__ __forceinline__ void store(double* to, const double* from) {
        Pack<double, kPair> pair;
#pragma unroll
        for (int i = 0; i < kPair; ++i) pair.value[i] = from[i];
        *reinterpret_cast<Pack<double, kPair>*>(to) = pair;
    }

    template <typename F>
    static __device__ __forceinline__ void for_pairs(F&& f) {
#pragma unroll
        for (int v = 0; v < V; v += kPair) f(v);
    }
};

// Where a window stands among the groups: the group of the row at hand and where that group ends.
struct Place {
    int64_t window, begin, end;  // rows of every window; this window's part of `order`
    bool finishing;              // Second::kSpread adds up window by window, whatever the groups
    int64_t group, group_begin, group_end;

    __device__ __forceinline__ Place(const Task& job, int64_t w, Second second)
        : window(job.window), begin(w * job.window), finishing(second != Second::kSpread) {
        end = min(begin + job.window, job.offsets[job.groups]);
    }

    __device__ __forceinline__ void enter(const int64_t* offsets, int64_t g) {
        group = g;
        group_begin = offsets[g];
        group_end = offsets[g + 1];
    }

    // On to the group of position i, the first position behind this group; often the very next one.
    __device__ __forceinline__ void next(const int64_t* offsets, int64_t groups, int64_t i) {
        enter(offsets, offsets[group + 2] > i ? group + 1 : find_group(offsets, groups, i));
    }

    __device__ __forceinline__ bool cut_before() const { return group_begin < begin; }
    __device__ __forceinline__ bool cut_behind() const { return group_end > end; }

    // Whether this window goes on to the end of its last group, in the next one ...
    __device__ __forceinline__ bool finishes() const {
        return finishing && cut_behind() && !cut_before() && group_end <= end + window;
    }
    // ... and the window before so has done the rows of this window's first group.
    __device__ __forceinline__ bool finished_before() const {
        return finishing && cut_before() && group_begin >= begin - window && !cut_behind();
    }
};

// A run in one window; `second`: one in the next window, whose first part has been written.
template <int V, Second kSecond>
__device__ __forceinline__ void write_run(const Task& job, int64_t w, int64_t column, const Place& at,
                                          Sums<V, kSecond>& run, bool second) {
    constexpr bool kSquares = kSecond == Second::kSquares;
    const bool whole = (!at.cut_before() && !at.cut_behind()) || at.finishes();
    if (!whole) {
        // slot 0: a run that began in an earlier window; slot 1: one that begins here and goes on
        const int64_t slot = 2 * w + (at.cut_before() ? 0 : 1);
        double* out = job.slots + slot * (kSquares ? 2 : 1) * job.channels + column;
        run.write(out, out + job.channels);
    } else {
        const int64_t out = at.group * job.channels + column;
        if (second) run.add_to(job.sums + out, kSquares ? job.sumsq + out : nullptr);
        run.write(job.sums + out, kSquares ? job.sumsq + out : nullptr);
    }
}

// blockDim (x: columns in packs of V, y: windows).
template <typename T, int V, Second kSecond>
__global__ void __launch_bounds__(kThreads, 4) sum_windows(Job<T> job) {
    const int64_t w = blockIdx.x * static_cast<int64_t>(blockDim.y) + threadIdx.y;
    const int64_t column = (blockIdx.y * static_cast<int64_t>(blockDim.x) + threadIdx.x) * V;
    if (w >= job.windows || column >= job.channels) return;
    const bool first_column = column == 0;
    Place at(job, w, kSecond);
    if (first_column) job.leaders[w] = -1;
    if (at.begin >= at.end) return;  // rows without a group leave the last windows empty
    at.enter(job.offsets, find_group(job.offsets, job.groups, at.begin));
    int64_t first = at.begin, last = at.end;
    if (at.finished_before()) {
        first = at.group_end;
        if (first == last) return;
        at.next(job.offsets, job.groups, first);
    }

    const T* x = job.x + column;
    bool finite = true;
    Sums<V, kSecond> run;
    run.begin(job.centers, at.group * job.channels + column);
    for (bool second = false;; second = true) {
        for (int64_t i = first; i < last; i += kRowsInFlight) {
            Pack<T, V> row[kRowsInFlight];
#pragma unroll
            for (int r = 0; r < kRowsInFlight; ++r) {
                const int64_t from = min(i + r, last - 1);  // past the end: a row that is not added
                row[r] = load_pack<T, V>(x + job.order[from] * job.stride_n);
            }
#pragma unroll
            for (int r = 0; r < kRowsInFlight; ++r) {
                if (i + r < last) {
                    if (i + r == at.group_end) {
                        write_run(job, w, column, at, run, false);
                        finite = finite && run.finite();
                        at.next(job.offsets, job.groups, i + r);
                        run.begin(job.centers, at.group * job.channels + column);
                    }
                    run.add(row[r]);
                }
            }
        }
        finite = finite && run.finite();
        write_run(job, w, column, at, run, second);
        if (second || !at.finishes()) break;
        first = at.end, last = at.group_end;
        run.begin(job.centers, at.group * job.channels + column);
    }
    if (!finite) atomicOr(&job.marks[w], 1);
    if (kSecond == Second::kSpread) job.spreads[w * ceil_div(job.channels, V) + column / V] = run.spread;
    if (first_column && at.cut_behind() && !at.cut_before() && !at.finishes()) job.leaders[w] = at.group;
}

// One warp a group: its count, and zeros where it has no rows. And no window is marked yet.
template <bool Squares>
__global__ void __launch_bounds__(kThreads) count_groups(Task job) {
    const int64_t threads = gridDim.x * static_cast<int64_t>(kThreads);
    for (int64_t w = blockIdx.x * int64_t{kThreads} + threadIdx.x; w < job.windows; w += threads) {
        job.marks[w] = 0;
    }
    const int lane = threadIdx.x % kWarp;
    const int64_t warps = gridDim.x * static_cast<int64_t>(kThreads / kWarp);
    int64_t g = blockIdx.x * static_cast<int64_t>(kThreads / kWarp) + threadIdx.x / kWarp;
    for (; g < job.groups; g += warps) {
        const int64_t rows = job.offsets[g + 1] - job.offsets[g];
        if (lane == 0) job.counts[g] = rows;
        if (rows > 0) continue;
        for (int64_t c = lane; c < job.channels; c += kWarp) {
            job.sums[g * job.channels + c] = 0;
            if (Squares) job.sumsq[g * job.channels + c] = 0;
        }
    }
}

constexpr int kMaxWindow = 512;

// A block a window; only a marked one has anything to do. A warp looks through a row for what is not
// finite; then, to skip such rows, the block sums again what the window has summed, without them.
template <typename T, Second kSecond>
__global__ void __launch_bounds__(kThreads) mend_windows(Job<T> job) {
    SHARED(bool, leave_out, [2 * kMaxWindow]);
    const int64_t w = blockIdx.x;
    if (job.marks[w] == 0) return;
    Place at(job, w, kSecond);
    at.enter(job.offsets, find_group(job.offsets, job.groups, at.end - 1));
    const int64_t last = at.finishes() ? at.group_end : at.end;
    at.enter(job.offsets, find_group(job.offsets, job.groups, at.begin));
    const int64_t first = at.finished_before() ? at.group_end : at.begin;

    for (int64_t i = first + threadIdx.x / kWarp; i < last; i += kThreads / kWarp) {
        const int64_t row = job.order[i];
        const bool bad = report_nonfinite(job.x + row * job.stride_n, row, job.n, job.channels, job.status);
        if (threadIdx.x % kWarp == 0) {
            leave_out[i - first] = bad;
            if (bad && job.skip_nonfinite) {
                atomic_add(&job.counts[find_group(job.offsets, job.groups, i)], -1);
            }
        }
    }
    __syncthreads();
    if (!job.skip_nonfinite || kSecond == Second::kSpread) return;

    for (int64_t c = threadIdx.x; c < job.channels; c += kThreads) {
        at.enter(job.offsets, find_group(job.offsets, job.groups, first));
        Sums<1, kSecond> run;
        run.begin(nullptr, 0);
        for (int64_t i = first; i < last; ++i) {
            if (i == at.group_end || i == at.end) {
                write_run(job, w, c, at, run, false);
                run.begin(nullptr, 0);
                if (i == at.group_end) at.next(job.offsets, job.groups, i);
            }
            if (!leave_out[i - first]) {
                run.add(load_pack<T, 1>(job.x + job.order[i] * job.stride_n + c));
            }
        }
        write_run(job, w, c, at, run, last > at.end);
    }
}

// The workspace: slots, leaders, marks, and the means where there is something to average.
struct Layout {
    int64_t window, windows, slots, leaders, marks, means, bytes;

    Layout(const Features& x, bool squares) {
        window = window_rows(x.n, x.channels);
        windows = ceil_div(x.n, window);
        slots = 0;
        leaders = slots + 2 * windows * (squares ? 2 : 1) * x.channels * 8;
        means = leaders + ceil_div(windows, 2) * 16;  // for packs of 16 bytes
        const int64_t mean_size = x.dtype == DType::float64 ? 8 : 4;
        marks = means + (x.positions > 1 ? ceil_div(x.n * x.channels * mean_size, 16) * 16 : 0);
        bytes = marks + windows * 4;
        if (windows % 2) bytes += 4;
    }
};

template <typename T, int V, Second kSecond>
void launch_windows(const Job<T>& job, cudaStream_t stream) {
    const int64_t packs = ceil_div(job.channels, V);
    int lanes = 1;
    while (lanes < kThreads && lanes < packs) lanes *= 2;
    const dim3 block(lanes, kThreads / lanes);
    const dim3 grid(ceil_div(job.windows, block.y), ceil_div(packs, lanes));
    LAUNCH((sum_windows<T, V, kSecond>), grid, block, 0, stream)(job);
}

// Whether a thread can take the columns of 16 bytes.
bool is_wide(const void* x, int64_t size, int64_t stride_n, int64_t channels) {
    return reinterpret_cast<uintptr_t>(x) % 16 == 0 && stride_n * size % 16 == 0 && channels * size % 16 == 0;
}

template <typename T, Second kSecond>
void launch_sums(const ClassMoments& a, const Layout& layout, const T* x, int64_t stride_n,
                 const double* centers, double* spreads, cudaStream_t stream) {
    constexpr bool Squares = kSecond == Second::kSquares;
    for (const double* sums : {a.sums, a.sumsq}) {
        const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(sums) % 16);
        expect(past == 0, "sums", "addresses that are multiples of 16", past);
    }
    char* space = static_cast<char*>(a.workspace);
    const Job<T> job{{a.x.n, a.x.channels, stride_n, a.order, a.offsets, a.groups,
                      layout.window, layout.windows, a.counts, a.sums, a.sumsq,
                      reinterpret_cast<double*>(space + layout.slots),
                      reinterpret_cast<int64_t*>(space + layout.leaders),
                      reinterpret_cast<int*>(space + layout.marks), a.status, a.skip_nonfinite,
                      centers, spreads},
                     x};
    const int64_t warps = kThreads / kWarp;
    LAUNCH((count_groups<Squares>), min(ceil_div(job.groups, warps), int64_t{1} << 16), kThreads, 0,
           stream)(job);
    if (job.windows == 0 || job.channels == 0) return;

    if (is_wide(x, sizeof(T), stride_n, job.channels)) {
        launch_windows<T, 16 / sizeof(T), kSecond>(job, stream);
    } else {
        launch_windows<T, 1, kSecond>(job, stream);
    }
    LAUNCH((mend_windows<T, kSecond>), job.windows, kThreads, 0, stream)(job);
    const int64_t size = (Squares ? 2 : 1) * job.channels;
    // About two rounds of 8 blocks for each of 132 multiprocessors.
    const int64_t columns = ceil_div(size, kWarp);
    const dim3 grid(columns, min(job.windows, max(kSlotBlocks / columns, int64_t{1})));
    LAUNCH((add_slots<Squares>), grid, dim3(kWarp, kSlotLanes), 0, stream)(job);
}

template <typename T, Second kSecond>
void launch(const ClassMoments& a, cudaStream_t stream) {
    const Layout layout(a.x, a.squares);
    if (a.x.positions == 1) {
        launch_sums<T, kSecond>(a, layout, static_cast<const T*>(a.x.data), a.x.stride_n, nullptr, nullptr,
                                stream);
        return;
    }
    using Mean = std::conditional_t<std::is_same_v<T, double>, double, float>;
    Mean* means = reinterpret_cast<Mean*>(static_cast<char*>(a.workspace) + layout.means);
    launch_spatial_mean(a.x, means, stream);
    launch_sums<Mean, kSecond>(a, layout, means, a.x.channels, nullptr, nullptr, stream);
}

}  // namespace

int64_t class_moments_workspace(const Features& x, int64_t, bool squares) { return Layout(x, squares).bytes; }

void class_moments(const ClassMoments& a, int device, void* stream) {
    validate(a);
    // gridDim.y of sum_windows has 65,535 blocks of 128 columns at least.
    expect(a.x.channels <= int64_t{65535} * kThreads, "channels", "at most 8,388,480 on CUDA",
           a.x.channels);
    const DeviceGuard guard(device);
    dispatch<__half, __nv_bfloat16>(a.x.dtype, [&](auto type) {
        dispatch_bool(a.squares, [&](auto squares) {
            launch<typename decltype(type)::type,
                   decltype(squares)::value ? Second::kSquares : Second::kNone>(
                a, static_cast<cudaStream_t>(stream));
        });
    });
    check(cudaGetLastError(), "class_moments");
}

int64_t spread_parts(const Features& x) {
    const int64_t size = x.dtype == DType::float64 ? 8 : x.dtype == DType::float32 ? 4 : 2;
    const int64_t pack = is_wide(x.data, size, x.stride_n, x.channels) ? 16 / size : 1;
    return Layout(x, false).windows * ceil_div(x.channels, pack);
}

void class_spreads(const ClassMoments& a, const double* centers, double* spreads, cudaStream_t stream) {
    dispatch<__half, __nv_bfloat16>(a.x.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        launch_sums<T, Second::kSpread>(a, Layout(a.x, false), static_cast<const T*>(a.x.data), a.x.stride_n,
                                        centers, spreads, stream);
    });
}

}  // namespace resque::cuda
