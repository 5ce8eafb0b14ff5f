// class_order on CUDA: a stable radix sort of the rows by class, eight bits a pass, then the groups.
//
// A pass is three kernels: every tile of 2,048 keys counts its digits; every digit's counts are summed
// over the tiles; every tile writes its keys to their places, in their order. One pass sorts up to 255
// classes, two up to 65,535. Bytes for a million labels and two passes: 8 MB of labels twice, keys and
// rows of 8 MB written and read, 1 MB of counts: 50 MB, 17 us at 3 TB/s, beside 8 launches.
//
// Everything is integer and every place is computed, none is raced for: the order is one and the same.
#include "cuda/common.cuh"
#include "validate.h"

namespace resque::cuda {
namespace {

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRounds = 8;  // of 32 keys for each warp
constexpr int kTile = kThreads * kRounds;
static_assert(kThreads == kDigits, "one thread a digit");

// The workspace, cut up: [tiles][...] counts digit by digit, and two buffers of keys and rows.
struct Buffers {
    int32_t* counts;  // [kDigits, tiles]
    int32_t* totals;  // [kDigits]
    uint32_t* keys[2];
    int32_t* rows[2];
};

// The keys of one pass: the labels themselves in the first, whatever the last pass wrote then. A label
// out of range gets the key `classes`, which sorts behind all others.
template <typename Label>
struct Keys {
    const Label* labels;  // null after the first pass
    int64_t stride, classes, n;
    const uint32_t* keys;
    const int32_t* rows;

    __device__ __forceinline__ uint32_t key(int64_t i) const {
        if (!labels) return keys[i];
        const int64_t label = labels[i * stride];
        return static_cast<uint32_t>(label >= 0 && label < classes ? label : classes);
    }
    __device__ __forceinline__ int32_t row(int64_t i) const {
        return labels ? static_cast<int32_t>(i) : rows[i];
    }
};

__device__ __forceinline__ int digit_of(uint32_t key, int shift) {
    return (key >> shift) & (kDigits - 1);
}

// The 32 keys of round r of this thread's warp are neighbours, and a warp's rounds follow each other.
__device__ __forceinline__ int64_t key_index(int round) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    return static_cast<int64_t>(blockIdx.x) * kTile + (warp * kRounds + round) * kWarp + lane;
}

// The sum over the threads before this one, of 256; `total` is that of all.
__device__ int32_t exclusive_sum(int32_t value, int32_t* warp_sums, int32_t* total) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    int32_t sum = value;
    for (int step = 1; step < kWarp; step *= 2) {
        const int32_t below = __shfl_up_sync(0xffffffffu, sum, step);
        if (lane >= step) sum += below;
    }
    if (lane == kWarp - 1) warp_sums[warp] = sum;
    __syncthreads();
    int32_t before = 0, all = 0;
    for (int w = 0; w < kWarps; ++w) {
        if (w < warp) before += warp_sums[w];
        all += warp_sums[w];
    }
    __syncthreads();  // warp_sums may be written again
    *total = all;
    return before + sum - value;
}

template <typename Label>
__global__ void __launch_bounds__(kThreads)
    count_digits(Keys<Label> in, int shift, int64_t tiles, int32_t* counts, int64_t* status) {
    SHARED(int32_t, count, [kDigits]);
    count[threadIdx.x] = 0;
    __syncthreads();
    for (int r = 0; r < kRounds; ++r) {
        const int64_t i = key_index(r);
        if (i >= in.n) continue;
        const uint32_t key = in.key(i);
        atomicAdd(&count[digit_of(key, shift)], 1);
        if (in.labels && key == in.classes) atomic_max(&status[kBadLabelFromEnd], in.n - i);
    }
    __syncthreads();
    counts[threadIdx.x * tiles + blockIdx.x] = count[threadIdx.x];
}

// One block a digit: its counts become the sums over the tiles before.
__global__ void __launch_bounds__(kThreads)
    sum_over_tiles(int64_t tiles, int32_t* counts, int32_t* totals) {
    SHARED(int32_t, warp_sums, [kWarps]);
    int32_t* mine = counts + blockIdx.x * tiles;
    int32_t before = 0;
    for (int64_t start = 0; start < tiles; start += kThreads) {
        const int64_t t = start + threadIdx.x;
        const int32_t count = t < tiles ? mine[t] : 0;
        int32_t total;
        const int32_t sum = exclusive_sum(count, warp_sums, &total);
        if (t < tiles) mine[t] = before + sum;
        before += total;
    }
    if (threadIdx.x == 0) totals[blockIdx.x] = before;
}

template <typename Label>
__global__ void __launch_bounds__(kThreads)
    place_rows(Keys<Label> in, int shift, int64_t tiles, const int32_t* counts,
               const int32_t* totals, uint32_t* keys_out, int32_t* rows_out) {
    SHARED(int32_t, next, [kWarps][kDigits]);  // first counts, then places
    SHARED(int32_t, warp_sums, [kWarps]);
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    for (int w = 0; w < kWarps; ++w) next[w][threadIdx.x] = 0;
    __syncthreads();

    // rank[r]: keys of the same digit before this one among the warp's; the lowest lane of each digit
    // counts for all of them. Lanes past the end hold a digit of their own, which counts nowhere.
    uint32_t key[kRounds];
    int32_t rank[kRounds];
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
        const int64_t i = key_index(r);
        const bool valid = i < in.n;
        key[r] = valid ? in.key(i) : 0;
        const int digit = valid ? digit_of(key[r], shift) : kDigits;
        const unsigned same = __match_any_sync(0xffffffffu, digit);
        const unsigned below = same & ((1u << lane) - 1);
        rank[r] = __popc(below) + (valid ? next[warp][digit] : 0);
        __syncwarp();
        if (valid && below == 0) next[warp][digit] += __popc(same);
        __syncwarp();
    }

    // The barriers inside exclusive_sum also stand between the counting above and what follows.
    int32_t unused;
    const int digit = threadIdx.x;
    int32_t place = exclusive_sum(totals[digit], warp_sums, &unused);
    place += counts[digit * tiles + blockIdx.x];
    for (int w = 0; w < kWarps; ++w) {
        const int32_t count = next[w][digit];
        next[w][digit] = place;
        place += count;
    }
    __syncthreads();

#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
        const int64_t i = key_index(r);
        if (i >= in.n) continue;
        const int64_t to = next[warp][digit_of(key[r], shift)] + rank[r];
        keys_out[to] = key[r];
        rows_out[to] = in.row(i);
    }
}

__device__ int64_t lower_bound(const uint32_t* keys, int64_t n, int64_t key) {
    int64_t low = 0, high = n;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (keys[middle] < key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// Rows of a class dealt in turn from block `turn` on: how many the blocks before `block` get. Each has
// rows / blocks; the rows % blocks left over go to turn, turn + 1, ... around the end.
__device__ __forceinline__ int64_t rows_before(int64_t block, int64_t rows, int64_t blocks,
                                               int64_t turn) {
    const int64_t end = turn + rows % blocks;
    const int64_t direct = min(block, min(end, blocks)) - turn;
    const int64_t around = min(block, end - blocks);
    return block * (rows / blocks) + max(direct, int64_t{0}) + max(around, int64_t{0});
}

// One thread a group, and one for the end. Thread 0 also fetches the first bad label.
template <typename Label>
__global__ void find_groups(ClassOrder a, const uint32_t* keys) {
    const int64_t g = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
    if (g > a.classes * a.blocks) return;
    const int64_t c = g / a.blocks, start = lower_bound(keys, a.n, c);
    const int64_t block = g % a.blocks;
    if (block == 0) {
        a.offsets[g] = start;
    } else {
        const int64_t rows = lower_bound(keys, a.n, c + 1) - start;
        a.offsets[g] = start + rows_before(block, rows, a.blocks, a.seen ? a.seen[c] % a.blocks : 0);
    }
    if (g == 0 && a.status[kBadLabelFromEnd] > 0) {
        const int64_t position = a.n - a.status[kBadLabelFromEnd];
        a.status[kBadLabel] = static_cast<const Label*>(a.labels)[position * a.label_stride];
    }
}

// Rows in class order become rows in group order: the j-th row of a class goes to the block whose turn
// it is, as its j / blocks-th.
__global__ void deal_rows(ClassOrder a, const uint32_t* keys, const int32_t* rows) {
    const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
    if (i >= a.n || keys[i] >= a.classes) return;
    const int64_t c = keys[i], turn = a.seen ? a.seen[c] % a.blocks : 0;
    const int64_t j = i - a.offsets[c * a.blocks];
    const int64_t block = (turn + j) % a.blocks;
    a.order[a.offsets[c * a.blocks + block] + j / a.blocks] = rows[i];
}

int passes(int64_t classes) {
    int count = 1;
    while (classes >> (kDigitBits * count)) ++count;  // the largest key is `classes`
    return count;
}

int64_t aligned(int64_t bytes) { return ceil_div(bytes, 256) * 256; }

template <typename Label>
void launch(const ClassOrder& a, cudaStream_t stream) {
    const int64_t tiles = ceil_div(a.n, kTile), part = aligned(a.n * 4);
    char* space = static_cast<char*>(a.workspace);
    Buffers b;
    b.counts = reinterpret_cast<int32_t*>(space);
    b.totals = reinterpret_cast<int32_t*>(space + aligned(kDigits * tiles * 4));
    space += aligned(kDigits * tiles * 4) + aligned(kDigits * 4);
    for (int i = 0; i < 2; ++i) {
        b.keys[i] = reinterpret_cast<uint32_t*>(space + i * part);
        b.rows[i] = reinterpret_cast<int32_t*>(space + (2 + i) * part);
    }

    int now = 0;
    if (a.n > 0) {
        Keys<Label> in{static_cast<const Label*>(a.labels), a.label_stride, a.classes, a.n, nullptr,
                       nullptr};
        for (int pass = 0; pass < passes(a.classes); ++pass, now = 1 - now) {
            const int shift = pass * kDigitBits;
            // With one block a class, the last pass writes the answer itself.
            const bool last = pass + 1 == passes(a.classes);
            if (last && a.blocks == 1) b.rows[1 - now] = a.order;
            LAUNCH((count_digits<Label>), tiles, kThreads, 0, stream)(in, shift, tiles, b.counts, a.status);
            LAUNCH((sum_over_tiles), kDigits, kThreads, 0, stream)(tiles, b.counts, b.totals);
            LAUNCH((place_rows<Label>), tiles, kThreads, 0, stream)(in, shift, tiles, b.counts, b.totals,
                                                                    b.keys[1 - now], b.rows[1 - now]);
            in.labels = nullptr;
            in.keys = b.keys[1 - now];
            in.rows = b.rows[1 - now];
        }
    }
    const int64_t ends = a.classes * a.blocks + 1;
    LAUNCH((find_groups<Label>), ceil_div(ends, kThreads), kThreads, 0, stream)(a, b.keys[now]);
    if (a.blocks > 1 && a.n > 0) {
        LAUNCH((deal_rows), ceil_div(a.n, kThreads), kThreads, 0, stream)(a, b.keys[now], b.rows[now]);
    }
    check(cudaGetLastError(), "class_order");
}

}  // namespace

int64_t class_order_workspace(int64_t n, int64_t, int64_t) {
    return aligned(kDigits * ceil_div(n, kTile) * 4) + aligned(kDigits * 4) + 4 * aligned(n * 4);
}

void class_order(const ClassOrder& a, int device, void* stream) {
    validate(a);
    const DeviceGuard guard(device);
    const auto s = static_cast<cudaStream_t>(stream);
    a.labels_int64 ? launch<int64_t>(a, s) : launch<int32_t>(a, s);
}

const char* toolkit() {
    static const std::string version =
        std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION / 10 % 100);
    return version.c_str();
}

}  // namespace resque::cuda
