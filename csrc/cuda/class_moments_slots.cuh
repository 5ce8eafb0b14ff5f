// class_moments on CUDA: what its kernels read and write, and the sums of groups that windows have cut.
#pragma once

#include "cuda/common.cuh"

namespace resque::cuda {
namespace {

// What is added up beside the sums: nothing; the squares; or the squares of the distances from the
// group's center, of all groups together.
enum class Second { kNone, kSquares, kSpread };

// Everything the kernels of class_moments read and write, but for the features.
struct Task {
    int64_t n, channels, stride_n;
    const int32_t* order;
    const int64_t* offsets;
    int64_t groups;
    int64_t window, windows;  // rows of a window; how many windows there are
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
constexpr int64_t kSlotBlocks = 2048;

// blockDim (32 columns, 8 parts of the slots), gridDim (columns, windows to begin at). A block looks at
// 32 windows at a time for such as begin a group that is cut. Up to 8 slots of a group one thread adds; of
// more each warp takes a part. The parts are fixed by the group's windows, and added in their order.
template <bool Squares>
__global__ void __launch_bounds__(kWarp* kSlotLanes, 4) add_slots(Task job) {
    SHARED(double, part_sum, [kSlotLanes][kWarp]);
    SHARED(double, part_lost, [kSlotLanes][kWarp]);
    const int64_t size = (Squares ? 2 : 1) * job.channels;
    const int64_t c = blockIdx.x * static_cast<int64_t>(kWarp) + threadIdx.x;
    const auto add = [&](int64_t w, int64_t begin, int64_t end) {
        Compensated sum;
#pragma unroll 8
        for (int64_t k = begin; k < end; ++k) {
            sum.add(job.slots[(2 * (w + k) + (k == 0 ? 1 : 0)) * size + c]);
        }
        return sum;
    };
    const auto write = [&](int64_t g, const Compensated& sum) {
        double* out = c < job.channels ? job.sums + g * job.channels + c
                                       : job.sumsq + g * job.channels + c - job.channels;
        *out = sum.total();
    };
    for (int64_t base = blockIdx.y; base < job.windows; base += int64_t{kWarp} * gridDim.y) {
        const int64_t mine = base + threadIdx.x * static_cast<int64_t>(gridDim.y);
        const int64_t group = mine < job.windows ? job.leaders[mine] : -1;
        const int64_t many = group < 0 ? 0 : (job.offsets[group + 1] - 1) / job.window - mine + 1;
        // What the lanes found is the same in all warps.
        unsigned cut = __ballot_sync(0xffffffffu, many > 0);
        for (unsigned turn = 0; cut; cut &= cut - 1) {
            const int lane = __ffs(static_cast<int>(cut)) - 1;
            const int64_t slots = __shfl_sync(0xffffffffu, many, lane);
            const int64_t g = __shfl_sync(0xffffffffu, group, lane);
            const int64_t w = base + lane * static_cast<int64_t>(gridDim.y);
            if (slots <= kSlotLanes) {
                if (turn++ % kSlotLanes == threadIdx.y && c < size) write(g, add(w, 0, slots));
                continue;
            }
            const int64_t part = ceil_div(slots, kSlotLanes);
            Compensated sum;
            if (c < size) sum = add(w, threadIdx.y * part, min(slots, (threadIdx.y + 1) * part));
            part_sum[threadIdx.y][threadIdx.x] = sum.sum;
            part_lost[threadIdx.y][threadIdx.x] = is_finite(sum.sum) ? sum.lost : 0;
            __syncthreads();
            if (threadIdx.y == 0 && c < size) {
                Compensated all;
                for (int p = 0; p < kSlotLanes; ++p) all.add(part_sum[p][threadIdx.x]);
                for (int p = 0; p < kSlotLanes; ++p) all.add(part_lost[p][threadIdx.x]);
                write(g, all);
            }
            __syncthreads();  // before the next leader's parts
        }
    }
}

}  // namespace
}  // namespace resque::cuda
