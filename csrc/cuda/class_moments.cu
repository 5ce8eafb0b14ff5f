// class_moments on CUDA: the class sums behind RESQUE_dist.
//
// The rows, grouped by class_order, are cut into windows of equally many. A thread walks one window
// for its own few columns, eight rows in flight, and adds in float64 registers: no atomics, no shared
// memory, no barrier. A run of rows that is its whole group writes the result; a run that a window's
// edge cuts writes a slot of the workspace, and add_slots then adds the slots of a group in their
// order. One code for 10 classes and for 100,000: windows are the same work whatever the labels are.
//
// A sum is finite exactly when all it added was (float64 has room for any number of narrower floats),
// so looking for NaN and infinity costs nothing: a window whose sums are not finite is marked, and
// mend_windows, which finds nothing marked on ordinary data, reads it again to say where, and to leave
// the rows out if asked.
//
// Bytes: features once; 12 bytes of order a row; slots, at most 2 a window of 16 bytes a column, written
// and read: 64 / (window rows * sizeof(T)) of the features, 6% at 256 rows of float32 if every window
// were cut twice, half of that for few classes. Several spatial positions are first averaged by
// spatial_mean, which writes 1 / positions of what it reads.
#include "cuda/class_moments.cuh"
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

// What is added up beside the sums: nothing; the squares; or the squares of the distances from the
// group's center, of all groups together.
enum class Second { kNone, kSquares, kSpread };

// Everything the kernels below read and write, but for the features.
struct Task {
    int64_t n, channels, stride_n;
    const int32_t* order;
    const int64_t* offsets;
    int64_t groups;
    int64_t window, windows;  // rows of a window; windows
    int64_t* counts;
    double* sums;
    double* sumsq;
    double* slots;     // [windows, 2, 1 or 2 with squares, channels]
    int64_t* leaders;  // [windows] the group whose first slot is in this window and not its last, or -1
    int* marks;        // [windows] nonzero where a sum is not finite
    int64_t* status;
    bool skip_nonfinite;
    const double* centers;  // [groups, channels] where there is a spread
    double* spreads;        // [windows, threads of a window]
};

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

    __device__ __forceinline__ void write(double* sum_out, double* sumsq_out) const {
#pragma unroll
        for (int v = 0; v < V; ++v) {
            sum_out[v] = sum[v];
            if (kSquares) sumsq_out[v] = sumsq[v];
        }
    }
};

// Where a window stands among the groups: the group of the row at hand and where that group ends.
struct Place {
    int64_t begin, end;  // the window's part of `order`
    int64_t group, group_begin, group_end;

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
};

template <int V, Second kSecond>
__device__ __forceinline__ void write_run(const Task& job, int64_t w, int64_t column,
                                          const Place& at, const Sums<V, kSecond>& run) {
    constexpr bool kSquares = kSecond == Second::kSquares;
    if (at.cut_before() || at.cut_behind()) {
        // slot 0: a run that began in an earlier window; slot 1: one that begins here and goes on
        const int64_t slot = 2 * w + (at.cut_before() ? 0 : 1);
        double* out = job.slots + slot * (kSquares ? 2 : 1) * job.channels + column;
        run.write(out, out + job.channels);
    } else {
        const int64_t out = at.group * job.channels + column;
        run.write(job.sums + out, kSquares ? job.sumsq + out : nullptr);
    }
}

// blockDim (x: columns in packs of V, y: windows).
template <typename T, int V, Second kSecond>
__global__ void __launch_bounds__(kThreads) sum_windows(Job<T> job) {
    const int64_t w = blockIdx.x * static_cast<int64_t>(blockDim.y) + threadIdx.y;
    const int64_t column = (blockIdx.y * static_cast<int64_t>(blockDim.x) + threadIdx.x) * V;
    if (w >= job.windows || column >= job.channels) return;
    const bool first_column = column == 0;
    Place at;
    at.begin = w * job.window;
    at.end = min(at.begin + job.window, job.offsets[job.groups]);
    if (first_column) job.leaders[w] = -1;
    if (at.begin >= at.end) return;  // rows without a group leave the last windows empty
    at.enter(job.offsets, find_group(job.offsets, job.groups, at.begin));

    const T* x = job.x + column;
    bool finite = true;
    Sums<V, kSecond> run;
    run.begin(job.centers, at.group * job.channels + column);
    for (int64_t i = at.begin; i < at.end; i += kRowsInFlight) {
        Pack<T, V> row[kRowsInFlight];
#pragma unroll
        for (int r = 0; r < kRowsInFlight; ++r) {
            const int64_t from = min(i + r, at.end - 1);  // past the end: a row that is not added
            row[r] = load_pack<T, V>(x + job.order[from] * job.stride_n);
        }
#pragma unroll
        for (int r = 0; r < kRowsInFlight; ++r) {
            if (i + r < at.end) {
                if (i + r == at.group_end) {
                    write_run(job, w, column, at, run);
                    finite = finite && run.finite();
                    at.next(job.offsets, job.groups, i + r);
                    run.begin(job.centers, at.group * job.channels + column);
                }
                run.add(row[r]);
            }
        }
    }
    write_run(job, w, column, at, run);
    finite = finite && run.finite();
    if (!finite) atomicOr(&job.marks[w], 1);
    if (kSecond == Second::kSpread) job.spreads[w * ceil_div(job.channels, V) + column / V] = run.spread;
    if (first_column && at.cut_behind() && !at.cut_before()) job.leaders[w] = at.group;
}

// One warp a group: its count, and zeros where it has no rows.
template <bool Squares>
__global__ void __launch_bounds__(kThreads) count_groups(Task job) {
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

// One block a window; only a marked one has anything to do. A warp looks through a row for what is not
// finite; then, to skip such rows, the block sums the window again without them.
template <typename T, bool Squares>
__global__ void __launch_bounds__(kThreads) mend_windows(Job<T> job) {
    SHARED(bool, leave_out, [kMaxWindow]);
    const int64_t w = blockIdx.x;
    if (job.marks[w] == 0) return;
    Place at;
    at.begin = w * job.window;
    at.end = min(at.begin + job.window, job.offsets[job.groups]);

    for (int64_t i = at.begin + threadIdx.x / kWarp; i < at.end; i += kThreads / kWarp) {
        const int64_t row = job.order[i];
        const bool bad = report_nonfinite(job.x + row * job.stride_n, row, job.n, job.channels, job.status);
        if (threadIdx.x % kWarp == 0) {
            leave_out[i - at.begin] = bad;
            if (bad && job.skip_nonfinite) {
                atomic_add(&job.counts[find_group(job.offsets, job.groups, i)], -1);
            }
        }
    }
    __syncthreads();
    if (!job.skip_nonfinite) return;

    for (int64_t c = threadIdx.x; c < job.channels; c += kThreads) {
        constexpr Second kSecond = Squares ? Second::kSquares : Second::kNone;
        at.enter(job.offsets, find_group(job.offsets, job.groups, at.begin));
        Sums<1, kSecond> run;
        run.begin(nullptr, 0);
        for (int64_t i = at.begin; i < at.end; ++i) {
            if (i == at.group_end) {
                write_run(job, w, c, at, run);
                run.begin(nullptr, 0);
                at.next(job.offsets, job.groups, i);
            }
            if (!leave_out[i - at.begin]) {
                run.add(load_pack<T, 1>(job.x + job.order[i] * job.stride_n + c));
            }
        }
        write_run(job, w, c, at, run);
    }
}

// Sum and lost low part, after Neumaier.
struct Compensated {
    double sum = 0, lost = 0;

    __device__ __forceinline__ void add(double x) {
        const double next = sum + x;
        lost += fabs(sum) >= fabs(x) ? (sum - next) + x : (x - next) + sum;
        sum = next;
    }
    // Where the sum left the finite numbers `lost` is NaN, and the sum alone is the answer.
    __device__ __forceinline__ double total() const { return is_finite(sum) ? sum + lost : sum; }
};

constexpr int kSlotLanes = 8;

// blockDim (32 columns, 8 parts of the slots), gridDim (columns, windows to begin at); blocks go from
// leader to leader. The parts are fixed by the group's windows and added in their order.
template <bool Squares>
__global__ void __launch_bounds__(kWarp* kSlotLanes) add_slots(Task job) {
    SHARED(double, part_sum, [kSlotLanes][kWarp]);
    SHARED(double, part_lost, [kSlotLanes][kWarp]);
    const int64_t size = (Squares ? 2 : 1) * job.channels;
    const int64_t c = blockIdx.x * static_cast<int64_t>(kWarp) + threadIdx.x;
    for (int64_t w = blockIdx.y; w < job.windows; w += gridDim.y) {
        const int64_t g = job.leaders[w];
        if (g < 0) continue;  // the same for the whole block
        const int64_t slots = (job.offsets[g + 1] - 1) / job.window - w + 1;
        const int64_t part = ceil_div(slots, kSlotLanes);
        const int64_t end = min(slots, (threadIdx.y + 1) * part);
        Compensated sum;
        if (c < size) {
#pragma unroll 4
            for (int64_t k = threadIdx.y * part; k < end; ++k) {
                sum.add(job.slots[(2 * (w + k) + (k == 0 ? 1 : 0)) * size + c]);
            }
        }
        part_sum[threadIdx.y][threadIdx.x] = sum.sum;
        part_lost[threadIdx.y][threadIdx.x] = is_finite(sum.sum) ? sum.lost : 0;
        __syncthreads();
        if (threadIdx.y == 0 && c < size) {
            Compensated all;
            for (int p = 0; p < kSlotLanes; ++p) all.add(part_sum[p][threadIdx.x]);
            for (int p = 0; p < kSlotLanes; ++p) all.add(part_lost[p][threadIdx.x]);
            double* out = c < job.channels ? job.sums + g * job.channels + c
                                           : job.sumsq + g * job.channels + c - job.channels;
            *out = all.total();
        }
        __syncthreads();  // before the next leader's parts
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
        means = leaders + windows * 8;
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

    check(cudaMemsetAsync(job.marks, 0, job.windows * 4, stream), "cudaMemsetAsync");
    if (is_wide(x, sizeof(T), stride_n, job.channels)) {
        launch_windows<T, 16 / sizeof(T), kSecond>(job, stream);
    } else {
        launch_windows<T, 1, kSecond>(job, stream);
    }
    LAUNCH((mend_windows<T, Squares>), job.windows, kThreads, 0, stream)(job);
    const int64_t size = (Squares ? 2 : 1) * job.channels;
    const dim3 grid(ceil_div(size, kWarp), min(job.windows, int64_t{1024}));
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
