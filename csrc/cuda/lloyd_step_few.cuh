// lloyd_step on CUDA for few centres: labels and sums from one reading of the features.
//
// A block owns a window of rows and takes it tile by tile, up to 64 KB; while it works on one tile the
// next is copied to shared memory. For each tile
//   multiply  a warp takes 16 rows and a part of the columns: from shared memory to registers, into the
//             frame, split, three products with all centres, which wait in shared memory;
//   decide    four lanes a row: the parts added, the centres whose bounds allow them to be the nearest;
//             where that is more than one, a warp works out their distances in float64;
//   add       a thread owns a column, or two: it walks the rows of the tile and adds each to the sum of
//             its label, in registers. The label is the same for the whole warp, so finding the
//             registers is a few branches that none of its lanes takes alone: no atomics, no sorting.
// Rows are added in an order fixed by the sizes; what differs between devices is the tile, which has no
// part in it.
//
// Bytes, float32 [1,048,576, 512] and 10 centres: the features once, 2,147 MB; 521 windows write 40 KB of
// sums each, which are read once, 43 MB, and load centres and bounds, 521 * 112 KB from the L2.
// Cycles of a multiprocessor a tile of 32 rows, against 4,900 in which memory brings 64 KB at 3 TB/s
// (132 multiprocessors at 1.75 GHz):
//   multiply  2 chunks a warp at about 130 instructions, 16 warps on 4 schedulers: 1,050
//   decide    the latency of two barriers, 8 loads, 4 shuffles: 400
//   add       16 instructions a row, of them 4 in float64 and one conversion, which takes 8 cycles:
//             32 rows * 4 warps * 16: 2,050
// and shared memory: 64 KB written, read twice, 1,600 cycles in all, behind the others.
// First to try on a GPU: warps that multiply the next tile while others add this one; a switch in place
// of the branches; tiles by bulk copies (cp.async.bulk), which cost one thread's instructions.
#pragma once

#include "cuda/lloyd_step_bounds.cuh"
#include "cuda/lloyd_step_exact.cuh"
#include "dispatch.h"

namespace resque::cuda {
namespace {

constexpr int kFewThreads = 512;
constexpr int kFewWarps = kFewThreads / kWarp;
constexpr int kFewCenters = 16;   // two tiles of the product
constexpr int kFewProductRows = 16 * kFewWarps;  // rows of a tile times parts of the columns
static_assert(kFewProductRows <= kFewThreads, "a thread a row");
constexpr int64_t kFewTile = 64 << 10;  // bytes of features
constexpr int kFewRow = kFewTile / 16;  // bytes of features of a row: the least tile has 16
constexpr int kSpan = 4096;  // rows that registers add up before memory does: their roundings

// How the rows are cut: by the sizes alone, as the sums depend on it. Four rounds of one block for each
// of 132 multiprocessors, each window large beside the centres that it loads.
struct Windows {
    int64_t rows, count;

    explicit Windows(int64_t n) {
        rows = max(ceil_div(ceil_div(n, 528), 32) * 32, int64_t{128});
        count = ceil_div(n, rows);
    }
};

// What a block keeps besides tiles, panels and shift.
struct FewShared {
    float products[kFewProductRows][kFewCenters];
    float squares[kFewProductRows];
    unsigned candidates[kFewProductRows];  // of the open rows
    int labels[kFewProductRows];
    int sorted[kFewProductRows];  // where rows start in the tile: group by group, label by label
    alignas(16) unsigned char ends[kFewWarps][kFewCenters];  // of each group's labels in its part of that
    int open[kFewProductRows];
    int opened;
    int rechecked;
    int counts[kFewCenters];
    double spreads[kFewWarps];
};

// Which part of a tile's shared memory is where, and how many rows it has.
struct FewPlan {
    int rows, pitch, chunks;  // rows of a tile, bytes from one to the next, chunks of columns
    // Threads that have a column each, or two. Narrow rows leave room for several such groups, which take
    // the rows of a tile in turn, so many each.
    int lanes, groups, each;
    int64_t panels, shift, centers, bytes;  // where they start, behind two tiles; all together
    bool fits, holds_centers;  // else they stay in global memory

    FewPlan(const Features& x, int64_t k, int64_t most_shared) {
        const int64_t size = x.dtype == DType::float64 ? 8 : x.dtype == DType::float32 ? 4 : 2;
        fits = k <= kFewCenters && x.channels * size <= kFewRow &&
               x.channels <= (k <= kFewCenters / 2 ? 2 : 1) * kFewThreads;
        if (!fits) return;
        chunks = static_cast<int>(ceil_div(x.channels, kChunk));
        // Rows that follow one another start in other banks: two for eight lanes that read 16 bytes each
        // of two rows.
        pitch = static_cast<int>(ceil_div(chunks * kChunk * size, 128) * 128 + (size == 2 ? 64 : 16));
        for (rows = kFewProductRows;; rows /= 2) {
            const int64_t tiles = max(2 * rows * int64_t{pitch}, k * x.channels * 8);
            panels = ceil_div(tiles, 16) * 16;
            shift = panels + chunks * int64_t{2} * kFewCenters * kChunk * 2;
            bytes = centers = shift + chunks * kChunk * 4;
            fits = bytes <= most_shared - static_cast<int64_t>(sizeof(FewShared));
            if (rows == 16 || (fits && rows * x.channels * size <= kFewTile)) break;
        }
        const int64_t with_centers = bytes + k * x.channels * 8;
        holds_centers = with_centers <= most_shared - static_cast<int64_t>(sizeof(FewShared));
        if (holds_centers) bytes = with_centers;
        for (lanes = kWarp; lanes < kFewThreads && lanes < x.channels;) lanes *= 2;
        groups = kFewThreads / lanes;
        each = rows / groups;
    }
};

template <typename T>
struct FewJob {
    const T* x;  // [n, width]
    int64_t n, width, stride_n;
    bool wide;  // rows can be copied 16 bytes at a time
    const double* centers;  // [k, width]
    int k;
    FewPlan plan;
    Windows windows;
    const Frame* frame;
    const Bound* bounds;  // [kFewCenters]
    const uint4* panels;  // [2, chunks, kFewCenters, 4] zh and zl
    const float* shift;   // [chunks * kChunk]
    int64_t* labels;
    int64_t* counts;   // or null
    double* slots;     // [windows, k, width] sums; or null
    double* spreads;   // [windows]
    int64_t* rechecked;
    int64_t* status;
};

// The sums of one thread's columns, one for each centre, and the squared distances from it.
template <int kCenters, int kColumns>
struct ColumnSums {
    double sum[kCenters][kColumns], spread;
};

// Starts the copy of `rows` rows to a tile.
template <typename T>
__device__ void fetch_tile(const FewJob<T>& job, char* tile, int64_t first, int rows, Copies& copies) {
    const int lane = threadIdx.x % kWarp;
    constexpr int kPack = 16 / sizeof(T);
    for (int r = threadIdx.x / kWarp; r < rows; r += kFewWarps) {
        const T* from = job.x + (first + r) * job.stride_n;
        T* to = reinterpret_cast<T*>(tile + r * job.plan.pitch);
        if (job.wide) {
            for (int c = lane * kPack; c < job.width; c += kWarp * kPack) copies.start(to + c, from + c);
        } else {
            for (int c = lane; c < job.width; c += kWarp) to[c] = from[c];
        }
    }
    copies.close_group();
}

// The products of 16 rows with all centres over every `parts`-th chunk, and the rows' squares.
template <typename T>
__device__ __forceinline__ void multiply_rows(const FewJob<T>& job, const char* tile, const uint4* panels,
                                              const float* shift, FewShared& shared) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
    const int bands = job.plan.rows / 16, parts = kFewWarps / bands;
    const int band = warp % bands, part = warp / bands;
    const float scale = job.frame->scale;
    float total[2][4] = {};
    float squares[2] = {};
    for (int chunk = part; chunk < job.plan.chunks; chunk += parts) {
        const int column = chunk * kChunk + 8 * t;
        uint32_t high[2][4], low[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const char* row = tile + (band * 16 + 8 * i + g) * job.plan.pitch;
            const T* x = reinterpret_cast<const T*>(row) + column;
            constexpr int kPack = 16 / sizeof(T) < 4 ? 16 / sizeof(T) : 4;
#pragma unroll
            for (int c = 0; c < 8; c += kPack) {
                const Pack<T, kPack> values = load_pack<T, kPack>(x + c);
                const Pack<float, kPack> away = load_pack<float, kPack>(shift + column + c);
#pragma unroll
                for (int v = 0; v < kPack; v += 2) {
                    const Split pair = split(to_frame(values.value[v], scale, away.value[v]),
                                             to_frame(values.value[v + 1], scale, away.value[v + 1]), &squares[i]);
                    high[i][(c + v) / 2] = pair.high, low[i][(c + v) / 2] = pair.low;
                }
            }
        }
#pragma unroll
        for (int j = 0; j < kFewCenters / 8; ++j) {
            const int at = (chunk * kFewCenters + 8 * j + g) * 4 + t;
            const uint4 zh = panels[at], zl = panels[at + job.plan.chunks * kFewCenters * 4];
            const uint32_t zh_pairs[4] = {zh.x, zh.y, zh.z, zh.w}, zl_pairs[4] = {zl.x, zl.y, zl.z, zl.w};
            float sum[4] = {};  // the small products first
#pragma unroll
            for (int s = 0; s < 4; s += 2) {
                const uint32_t yl[4] = {low[0][s], low[1][s], low[0][s + 1], low[1][s + 1]};
                const uint32_t yh[4] = {high[0][s], high[1][s], high[0][s + 1], high[1][s + 1]};
                multiply_add(sum, yl, zh_pairs[s], zh_pairs[s + 1]);
                multiply_add(sum, yh, zl_pairs[s], zl_pairs[s + 1]);
            }
#pragma unroll
            for (int s = 0; s < 4; s += 2) {
                const uint32_t yh[4] = {high[0][s], high[1][s], high[0][s + 1], high[1][s + 1]};
                multiply_add(sum, yh, zh_pairs[s], zh_pairs[s + 1]);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) total[j][i] += sum[i];
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = part * job.plan.rows + band * 16 + 8 * i + g;
#pragma unroll
        for (int j = 0; j < kFewCenters / 8; ++j) {
            const float2 pair = {total[j][2 * i], total[j][2 * i + 1]};
            *reinterpret_cast<float2*>(&shared.products[row][8 * j + 2 * t]) = pair;
        }
        for (int step = 1; step < 4; step *= 2) {
            squares[i] += __shfl_xor_sync(0xffffffffu, squares[i], step);
        }
        if (t == 0) shared.squares[row] = squares[i];
    }
}

// Labels of the rows that the products settle; the others are listed, with their candidates. All lanes
// of a warp come along, as they ask one another.
template <typename T>
__device__ __forceinline__ void decide_rows(const FewJob<T>& job, int rows, FewShared& shared) {
    const float ratio = job.frame->ratio;
    const unsigned all = (1u << job.k) - 1;
    for (int base = 0; base < rows; base += kFewThreads / 4) {
        if (base + static_cast<int>(threadIdx.x) / kWarp * (kWarp / 4) >= rows) break;  // none for this warp
        const int row = base + threadIdx.x / 4, first = threadIdx.x % 4 * 4;
        const bool there = row < rows;
        float key[4] = {};
        float squares = 0;
        for (int at = row; there && at < kFewProductRows; at += job.plan.rows) {
            const float4 part = *reinterpret_cast<const float4*>(&shared.products[at][first]);
            key[0] += part.x, key[1] += part.y, key[2] += part.z, key[3] += part.w;
            squares += shared.squares[at];
        }
        const Doubt<3> doubt(squares, job.width, ratio);
        float doubts[4], high = INFINITY;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const Bound center = job.bounds[first + i];
            doubts[i] = doubt.of(center);
            key[i] = fmaf(-2, key[i], center.square);
            high = fminf(high, key[i] + doubts[i]);
        }
        for (int step = 1; step < 4; step *= 2) high = fminf(high, __shfl_xor_sync(0xffffffffu, high, step));
        unsigned candidates = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) candidates |= unsigned{!(key[i] - doubts[i] > high)} << (first + i);
        for (int step = 1; step < 4; step *= 2) candidates |= __shfl_xor_sync(0xffffffffu, candidates, step);
        candidates = doubt.holds() ? candidates & all : all;
        if (!there || first != 0) continue;
        const int label = __ffs(static_cast<int>(candidates)) - 1;
        if (candidates >> label == 1) {
            shared.labels[row] = label;
            atomicAdd(&shared.counts[label], 1);
        } else {
            shared.candidates[row] = candidates;
            shared.open[atomicAdd(&shared.opened, 1)] = row;
        }
    }
}

// One warp an open row: its candidates' distances, four at a time.
template <typename T>
__device__ void decide_open_rows(const FewJob<T>& job, const char* tile, const double* centers, int64_t first,
                                 FewShared& shared) {
    for (int i = threadIdx.x / kWarp; i < shared.opened; i += kFewWarps) {
        const int row = shared.open[i];
        const T* x = reinterpret_cast<const T*>(tile + row * job.plan.pitch);
        Best best;
        for (unsigned left = shared.candidates[row]; left;) {
            int center = __ffs(static_cast<int>(left)) - 1;  // the last octets may take one once more
            for (int o = 0; o < kOctets && left; ++o, left &= left - 1) {
                if (o <= octet()) center = __ffs(static_cast<int>(left)) - 1;
            }
            best.look_at(distance(x, centers + center * job.width, job.width), center);
        }
        best.merge_lanes(kOctet);
        best.merge_lanes(2 * kOctet);
        if (best.nowhere()) report_nonfinite(x, first + row, job.n, job.width, job.status);
        const int label = best.nowhere() ? 0 : best.center;
        if (threadIdx.x % kWarp == 0) {
            shared.labels[row] = label;
            atomicAdd(&shared.counts[label], 1);
        }
    }
}

// The rows of each group by their labels, and in their order among those of one; a warp for each group.
__device__ __forceinline__ void sort_rows(const FewPlan& plan, int rows, FewShared& shared) {
    const int group = threadIdx.x / plan.lanes, lane = threadIdx.x % plan.lanes;
    if (lane >= kWarp) return;
    const unsigned below = (1u << lane) - 1;
    const int row[2] = {group + lane * plan.groups, group + (lane + kWarp) * plan.groups};
    // Which lanes hold a row, and which of them a label with each of its bits: the same in all lanes.
    constexpr int kBits = 4;
    static_assert(kFewCenters == 1 << kBits && kFewCenters <= kWarp);
    int label[2];
    unsigned there[2], ones[2][kBits];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        label[i] = row[i] < rows ? shared.labels[row[i]] : 0;
        there[i] = __ballot_sync(0xffffffffu, row[i] < rows);
#pragma unroll
        for (int b = 0; b < kBits; ++b) ones[i][b] = __ballot_sync(0xffffffffu, label[i] >> b & 1);
    }
    // How many rows have a smaller label than k, and which have k.
    const auto look = [&](int k, unsigned (&same)[2]) {
        int smaller = 0;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            unsigned less = 0;
            same[i] = there[i];
#pragma unroll
            for (int b = kBits - 1; b >= 0; --b) {
                const unsigned mine = k >> b & 1 ? ~0u : 0;
                less |= same[i] & ~ones[i][b] & mine;
                same[i] &= ~(ones[i][b] ^ mine);
            }
            smaller += __popc(less);
        }
        return smaller;
    };
    unsigned same[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        int place = look(label[i], same) + __popc(same[i] & below);
        if (i == 1) place += __popc(same[0]);
        if (row[i] < rows) shared.sorted[group * plan.each + place] = row[i] * plan.pitch;
    }
    const int smaller = look(lane, same);  // a lane for each label
    if (lane < kFewCenters) {
        shared.ends[group][lane] = static_cast<unsigned char>(smaller + __popc(same[0]) + __popc(same[1]));
    }
}

// kRows rows of one label to its sums: first all that is read, then all that is added.
template <int kRows, int kColumns, typename T>
__device__ __forceinline__ void add_some(const char* tile, const int* sorted, const bool (&inside)[kColumns],
                                         const double (&center)[kColumns], double (&sum)[kColumns], double& spread) {
    T x[kRows][kColumns];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
        const T* row = reinterpret_cast<const T*>(tile + sorted[i]);
#pragma unroll
        for (int v = 0; v < kColumns; ++v) x[i][v] = inside[v] ? row[v * kFewThreads] : static_cast<T>(0.0f);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int v = 0; v < kColumns; ++v) {
            const double value = to_double(x[i][v]), away = value - center[v];
            sum[v] += value;
            spread += away * away;
        }
    }
}

// The rows of a thread's group to the sums of their labels. Registers have no index: each label has its
// own code.
template <int kCenters, int kColumns, typename T>
__device__ __forceinline__ void add_rows(const FewJob<T>& job, const char* tile, const double* centers,
                                         const FewShared& shared, ColumnSums<kCenters, kColumns>& sums) {
    constexpr int kMost = 4 / kColumns;  // rows at once
    const int group = threadIdx.x / job.plan.lanes, column = threadIdx.x % job.plan.lanes;
    if (column >= job.width) return;
    const uint4 packed = *reinterpret_cast<const uint4*>(shared.ends[group]);
    const unsigned ends[4] = {packed.x, packed.y, packed.z, packed.w};
    const int* sorted = &shared.sorted[group * job.plan.each];
    tile += column * sizeof(T);
    centers += column;
    bool inside[kColumns];
#pragma unroll
    for (int v = 0; v < kColumns; ++v) inside[v] = v == 0 || column + v * kFewThreads < job.width;
    int before = 0;
#pragma unroll
    for (int k = 0; k < kCenters; ++k, centers += job.width) {
        const int end = static_cast<int>(ends[k / 4] >> (8 * (k % 4)) & 255);
        int left = end - before;
        before = end;
        if (left == 0) continue;
        double center[kColumns];
#pragma unroll
        for (int v = 0; v < kColumns; ++v) center[v] = inside[v] ? centers[v * kFewThreads] : 0;
#pragma unroll 1
        for (; left >= kMost; left -= kMost, sorted += kMost) {
            add_some<kMost, kColumns, T>(tile, sorted, inside, center, sums.sum[k], sums.spread);
        }
        if (kMost > 2 && left >= 2) {
            add_some<2, kColumns, T>(tile, sorted, inside, center, sums.sum[k], sums.spread);
            left -= 2, sorted += 2;
        }
        if (left > 0) add_some<1, kColumns, T>(tile, sorted++, inside, center, sums.sum[k], sums.spread);
    }
}

template <typename T, int kCenters, int kColumns>
__global__ void __launch_bounds__(kFewThreads, 1) step_few(FewJob<T> job) {
    DYN_SHARED(char, memory);
    SHARED(FewShared, shared);
    uint4* panels = reinterpret_cast<uint4*>(memory + job.plan.panels);
    float* shift = reinterpret_cast<float*>(memory + job.plan.shift);
    const int tile_bytes = job.plan.rows * job.plan.pitch, padded = job.plan.chunks * kChunk;
    for (int i = threadIdx.x; i < 2 * job.plan.chunks * kFewCenters * 4; i += kFewThreads) panels[i] = job.panels[i];
    for (int i = threadIdx.x; i < padded; i += kFewThreads) shift[i] = job.shift[i];
    if (threadIdx.x < kFewCenters) shared.counts[threadIdx.x] = 0;
    if (threadIdx.x < kFewWarps) shared.spreads[threadIdx.x] = 0;
    if (threadIdx.x == 0) shared.rechecked = 0;

    ColumnSums<kCenters, kColumns> sums;
    const double* centers = job.centers;
    if (job.plan.holds_centers) {
        double* own = reinterpret_cast<double*>(memory + job.plan.centers);
        for (int i = threadIdx.x; i < job.k * job.width; i += kFewThreads) own[i] = job.centers[i];
        centers = own;
    }

    // Rows are counted from the window's first.
    const int64_t window = blockIdx.x * job.windows.rows;
    const auto window_rows = [&] { return static_cast<int>(min(job.windows.rows, job.n - window)); };
    Copies copies;
    for (int first = 0, end = 0; end < window_rows();) {
        end = min(first + kSpan, window_rows());
        const auto rows_from = [&](int row) { return min(job.plan.rows, end - row); };
        // Columns that pad a tile are zero; the last span's sums may stand where they are.
        for (int i = threadIdx.x; i < 2 * job.plan.rows * (padded - static_cast<int>(job.width)); i += kFewThreads) {
            const int pad = padded - static_cast<int>(job.width);
            reinterpret_cast<T*>(memory + i / pad * job.plan.pitch)[job.width + i % pad] = static_cast<T>(0.0f);
        }
#pragma unroll
        for (int k = 0; k < kCenters; ++k) {
#pragma unroll
            for (int v = 0; v < kColumns; ++v) sums.sum[k][v] = 0;
        }
        sums.spread = 0;

        fetch_tile(job, memory, window + first, rows_from(first), copies);
        int stage = 0;
        for (; first < end; first += job.plan.rows, stage ^= 1) {
            const int rows = rows_from(first);
            const int next = first + job.plan.rows;
            char* tile = memory + stage * tile_bytes;
            copies.template wait<0>();
            __syncthreads();  // this tile is there, and the last one is done with
            if (threadIdx.x == 0) shared.opened = 0;
            if (next < end) fetch_tile(job, memory + (1 - stage) * tile_bytes, window + next, rows_from(next), copies);
            multiply_rows(job, tile, panels, shift, shared);
            __syncthreads();
            decide_rows(job, rows, shared);
            __syncthreads();
            if (shared.opened > 0) {  // the same for the whole block
                decide_open_rows(job, tile, centers, window + first, shared);
                if (threadIdx.x == 0) shared.rechecked += shared.opened;
                __syncthreads();
            }
            const int row = threadIdx.x;
            if (row < rows) job.labels[window + first + row] = shared.labels[row];
            sort_rows(job.plan, rows, shared);
            __syncthreads();
            add_rows(job, tile, centers, shared, sums);
        }
        for (int step = kWarp / 2; step > 0; step /= 2) {
            sums.spread += __shfl_xor_sync(0xffffffffu, sums.spread, step);
        }
        if (threadIdx.x % kWarp == 0) shared.spreads[threadIdx.x / kWarp] += sums.spread;
        __syncthreads();  // the tiles are done with; sums take their place

        if (job.slots) {
            double* slot = job.slots + blockIdx.x * job.k * job.width;
            double* others = reinterpret_cast<double*>(memory);
            const int group = threadIdx.x / job.plan.lanes, column = threadIdx.x % job.plan.lanes;
            for (int turn = 0; turn < job.plan.groups; ++turn) {
                if (turn == group && column < job.width) {
#pragma unroll
                    for (int k = 0; k < kCenters; ++k) {
#pragma unroll
                        for (int v = 0; v < kColumns; ++v) {
                            const int64_t at = k * job.width + column + v * int64_t{kFewThreads};
                            if (k >= job.k || column + v * kFewThreads >= job.width) continue;
                            const double sum = turn > 0 ? others[at] + sums.sum[k][v] : sums.sum[k][v];
                            if (turn + 1 < job.plan.groups) {
                                others[at] = sum;
                            } else {
                                slot[at] = end > kSpan ? slot[at] + sum : sum;
                            }
                        }
                    }
                }
                __syncthreads();  // the next group's turn
            }
        }
    }

    if (threadIdx.x == 0) {
        double spread = 0;
        for (int w = 0; w < kFewWarps; ++w) spread += shared.spreads[w];
        job.spreads[blockIdx.x] = spread;
        if (shared.rechecked > 0) atomic_add(job.rechecked, shared.rechecked);
    }
    if (job.counts && threadIdx.x < job.k) atomic_add(&job.counts[threadIdx.x], shared.counts[threadIdx.x]);
}

}  // namespace
}  // namespace resque::cuda
