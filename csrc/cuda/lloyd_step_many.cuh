// lloyd_step on CUDA for many centres: labels alone, from tensor cores; class_moments adds the rows then.
//
// sift   A block takes 128 rows and, tile by tile, 128 or 256 centres; eight warps, four by two. Chunk by
//        chunk of 32 columns, rows go through registers into the frame, are split to float16 and stored
//        to shared memory, while the next chunk is on its way from memory and the one after next of the
//        centres arrives by asynchronous copies. Of each row the three least lower bounds are kept, and
//        two centres. Where rows are wide the tiles of centres go to several blocks side by side: they
//        read the same rows at one time, from the L2.
// settle A thread a row: one centre possible is the label; of two, a warp works out the distances in
//        float64; of more, the row is listed.
// Listed rows are sifted again, with three products, and settled again; of what is still open, which
// takes three centres within 2^-15 of each other, all distances are worked out.
//
// Cycles, float32, sm_90 at 1.75 GHz. A step of 16 columns for 128 rows and 256 centres is 256 products of
// 2,048 multiplications: at 60% of 4 * 512 a cycle and multiprocessor, about what mma.sync gets, 420
// cycles. In that time shared memory moves 52 KB, 410 cycles, and a scheduler issues 2 * 95 instructions.
// [262,144, 2,048] and 1,000 centres: 4 * 2,048 tiles of 128 steps on 132 multiprocessors are 1.9 ms;
// from the L2 come 4 * 2.1 GB of rows and 2,048 * 4.2 MB of centres, 17 GB, some 3 ms: that is the bound.
// [1,048,576, 512] and 100 centres: the features once, 0.72 ms at 3 TB/s, beside 0.23 ms of products.
// Two blocks of 128 centres stand on one multiprocessor (at most 128 registers), so that one loads
// while the other finishes a tile.
// First to try on a GPU: wgmma (sm_90a) with the rows' tile from registers and the centres' by bulk
// copies, twice the rate of mma.sync; clusters that share a tile of rows, for the L2.
#pragma once

#include "cuda/lloyd_step_bounds.cuh"
#include "cuda/lloyd_step_exact.cuh"

namespace resque::cuda {
namespace {

constexpr int kSiftThreads = 256;
constexpr int kSiftRows = 128;
constexpr int kStages = 3;
constexpr int kSettleThreads = 256;

template <typename T>
struct ManyJob {
    const T* x;  // [n, width]
    int64_t n, width, stride_n;
    bool wide;  // rows can be read in packs of four
    const double* centers;  // [k, width]
    int64_t k;
    int64_t padded;       // centres in the panels, whole tiles
    int chunks;           // of columns
    int64_t splits;       // blocks side by side
    const Frame* frame;
    const Bound* bounds;  // [padded]
    const uint4* panels;  // [2, chunks, padded, 4] zh and zl
    const float* shift;   // [chunks * kChunk]
    int64_t* labels;
    Nearest* nearest;     // [splits, n] of all rows, or of those listed
    int32_t* listed;      // [n] rows with more than two possible centres
    int32_t* left;        // [n] such rows after three products
    int64_t* listed_count;
    int64_t* left_count;
    int64_t* rechecked;
    int64_t* status;
};

template <int kTile, int kProducts>
struct SiftShared {
    static constexpr int kParts = kProducts == 1 ? 1 : 2;  // high and low halves
    uint4 rows[2][kParts][kSiftRows][4];
    uint4 centers[kStages][kParts][kTile][4];
    Bound bounds[kTile];
    float2 squares[kSiftRows];
    Nearest nearest[2][kSiftRows];
};

// What a thread reads of a chunk: columns 4 l to 4 l + 3 and those 16 further, l = threadIdx.x % 4, of two
// rows. Four lanes so read 64 bytes of float32 side by side.
template <typename T>
struct Piece {
    T x[2][2][4];

    __device__ __forceinline__ void load(const ManyJob<T>& job, const T* const (&rows)[2], int chunk) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            const int column = chunk * kChunk + 16 * part + threadIdx.x % 4 * 4;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                constexpr int kPack = sizeof(T) == 8 ? 2 : 4;
                if (job.wide && column < job.width) {
#pragma unroll
                    for (int c = 0; c < 4; c += kPack) {
                        const Pack<T, kPack> pack = load_pack<T, kPack>(rows[i] + column + c);
#pragma unroll
                        for (int v = 0; v < kPack; ++v) x[i][part][c + v] = pack.value[v];
                    }
                } else {
#pragma unroll
                    for (int v = 0; v < 4; ++v) {
                        x[i][part][v] = column + v < job.width ? rows[i][column + v] : static_cast<T>(0.0f);
                    }
                }
            }
        }
    }
};

// Rows are those of the job, or with three products those listed.
template <typename T, int kTile, int kProducts>
__global__ void __launch_bounds__(kSiftThreads, 1) sift(ManyJob<T> job) {
    using Shared = SiftShared<kTile, kProducts>;
    constexpr int kParts = Shared::kParts, kBands = kTile / 16;  // a warp has 32 rows and half a tile
    DYN_SHARED(Shared, memory);
    Shared& shared = *memory;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
    const int first_row = warp % 4 * 32, side = warp / 4, first_center = side * (kTile / 2);
    const int my_row = threadIdx.x / 4;  // and the one 64 below: what the thread reads

    const int64_t count = kProducts == 1 ? job.n : *job.listed_count;
    const int64_t share = blockIdx.x % job.splits;
    const int64_t tiles = job.padded / kTile, tiles_each = ceil_div(tiles, job.splits);
    const int64_t first_tile = share * tiles_each, end_tile = min(first_tile + tiles_each, tiles);
    const float scale = job.frame->scale, ratio = job.frame->ratio;
    Copies copies;

    for (int64_t begin = blockIdx.x / job.splits * kSiftRows; begin < count;
         begin += gridDim.x / job.splits * kSiftRows) {
        const T* rows[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int64_t at = min(begin + my_row + 64 * i, count - 1);  // past the end: the last one again
            rows[i] = job.x + (kProducts == 1 ? at : job.listed[at]) * job.stride_n;
        }
        for (int64_t tile = first_tile; tile < end_tile; ++tile) {
            const auto fetch_centers = [&](int chunk) {
                if (chunk < job.chunks) {
#pragma unroll
                    for (int p = 0; p < kParts; ++p) {
                        const int64_t panel = int64_t{p} * job.chunks + chunk;
                        const uint4* from = job.panels + (panel * job.padded + tile * kTile) * 4;
                        uint4* to = &shared.centers[chunk % kStages][p][0][0];
                        for (int i = threadIdx.x; i < kTile * 4; i += kSiftThreads) copies.start(to + i, from + i);
                    }
                }
                copies.close_group();
            };
            float2 squares[2] = {};
            Piece<T> piece;
            const auto store_rows = [&](int chunk) {
#pragma unroll
                for (int part = 0; part < 2; ++part) {
                    const int quad = 4 * part + t;  // of columns
                    const Pack<float, 4> away = load_pack<float, 4>(job.shift + chunk * kChunk + 4 * quad);
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        Split pair[2];
#pragma unroll
                        for (int v = 0; v < 4; v += 2) {
                            pair[v / 2] = split(to_frame(piece.x[i][part][v], scale, away.value[v]),
                                                to_frame(piece.x[i][part][v + 1], scale, away.value[v + 1]),
                                                &squares[i].x, kProducts == 1 ? &squares[i].y : nullptr);
                        }
                        auto& to = shared.rows[chunk % 2];
                        reinterpret_cast<uint2*>(to[0][my_row + 64 * i])[quad] = {pair[0].high, pair[1].high};
                        if (kParts == 2) {
                            reinterpret_cast<uint2*>(to[kParts - 1][my_row + 64 * i])[quad] = {pair[0].low, pair[1].low};
                        }
                    }
                }
            };

            for (int i = threadIdx.x; i < kTile; i += kSiftThreads) shared.bounds[i] = job.bounds[tile * kTile + i];
            for (int stage = 0; stage + 1 < kStages; ++stage) fetch_centers(stage);
            if (job.chunks > 0) {
                piece.load(job, rows, 0);
                store_rows(0);
            }
            const bool idle = tile * kTile + first_center >= job.k;  // nothing but padding
            float sum[2][kBands][4] = {}, total[2][kBands][4] = {};
            float reach = 0;
            for (int chunk = 0; chunk < job.chunks; ++chunk) {
                copies.template wait<kStages - 2>();
                __syncthreads();  // the chunk is there, and the last one is done with
                fetch_centers(chunk + kStages - 1);
                if (chunk + 1 < job.chunks) piece.load(job, rows, chunk + 1);
                if (!idle) {
                    uint32_t y[kParts][2][2][4];  // [part][band of rows][step]
#pragma unroll
                    for (int p = 0; p < kParts; ++p) {
#pragma unroll
                        for (int m = 0; m < 2; ++m) {
                            const uint4 a = shared.rows[chunk % 2][p][first_row + 16 * m + g][t];
                            const uint4 b = shared.rows[chunk % 2][p][first_row + 16 * m + 8 + g][t];
                            y[p][m][0][0] = a.x, y[p][m][0][1] = b.x, y[p][m][0][2] = a.y, y[p][m][0][3] = b.y;
                            y[p][m][1][0] = a.z, y[p][m][1][1] = b.z, y[p][m][1][2] = a.w, y[p][m][1][3] = b.w;
                        }
                    }
#pragma unroll
                    for (int j = 0; j < kBands; ++j) {
                        const auto& z = shared.centers[chunk % kStages];
                        const uint4 zh = z[0][first_center + 8 * j + g][t];
                        if constexpr (kProducts == 3) {
                            const uint4 zl = z[kParts - 1][first_center + 8 * j + g][t];
#pragma unroll
                            for (int m = 0; m < 2; ++m) {  // the small products first
                                multiply_add(sum[m][j], y[kParts - 1][m][0], zh.x, zh.y);
                                multiply_add(sum[m][j], y[kParts - 1][m][1], zh.z, zh.w);
                                multiply_add(sum[m][j], y[0][m][0], zl.x, zl.y);
                                multiply_add(sum[m][j], y[0][m][1], zl.z, zl.w);
                            }
                        }
#pragma unroll
                        for (int m = 0; m < 2; ++m) {
                            multiply_add(sum[m][j], y[0][m][0], zh.x, zh.y);
                            multiply_add(sum[m][j], y[0][m][1], zh.z, zh.w);
                        }
                    }
                }
                if (chunk + 1 < job.chunks) store_rows(chunk + 1);
                if constexpr (kProducts == 3) {  // a chain ends with the chunk
#pragma unroll
                    for (int i = 0; i < 2 * kBands * 4; ++i) {
                        float& part = sum[i / 4 / kBands][i / 4 % kBands][i % 4];
                        total[i / 4 / kBands][i / 4 % kBands][i % 4] += part;
                        part = 0;
                    }
                } else if ((chunk + 1) % (kChainColumns / kChunk) == 0) {
#pragma unroll
                    for (int i = 0; i < 2 * kBands * 4; ++i) {
                        reach = fmaxf(reach, fabsf(sum[i / 4 / kBands][i / 4 % kBands][i % 4]));
                    }
                }
            }
            copies.template wait<0>();

#pragma unroll
            for (int i = 0; i < 2; ++i) {
                for (int step = 1; step < 4; step *= 2) {
                    squares[i].x += __shfl_xor_sync(0xffffffffu, squares[i].x, step);
                    squares[i].y += __shfl_xor_sync(0xffffffffu, squares[i].y, step);
                }
                if (t == 0) shared.squares[my_row + 64 * i] = squares[i];
            }
            __syncthreads();

#pragma unroll
            for (int r = 0; r < 4; ++r) {  // rows g, g + 8, g + 16, g + 24 of the warp's
                const int row = first_row + 8 * r + g;
                const float2 square = shared.squares[row];
                const Doubt<kProducts> doubt = [&] {
                    if constexpr (kProducts == 1) {
                        return Doubt<1>(square.x, square.y, reach, job.width, ratio);
                    } else {
                        return Doubt<3>(square.x, job.width, ratio);
                    }
                }();
                Nearest nearest;
                nearest.clear();
                if (!idle) {
#pragma unroll
                    for (int i = 0; i < 2 * kBands; ++i) {
                        const int center = first_center + i / 2 * 8 + 2 * t + i % 2;
                        const Bound bound = shared.bounds[center];
                        const float product = (kProducts == 1 ? sum : total)[r / 2][i / 2][r % 2 * 2 + i % 2];
                        const float key = fmaf(-2, product, bound.square), off = doubt.of(bound);
                        nearest.insert(key - off, static_cast<int>(tile * kTile + center));
                        nearest.high = fminf(nearest.high, key + off);
                    }
                }
                if (!doubt.holds()) nearest.open();
                nearest.merge_lanes(1);
                nearest.merge_lanes(2);
                if (t == 0) {
                    if (tile > first_tile) nearest.merge(shared.nearest[side][row]);
                    shared.nearest[side][row] = nearest;
                }
            }
            __syncthreads();  // before the next tile's bounds, and before the two sides meet
        }
        if (threadIdx.x < kSiftRows && begin + threadIdx.x < count) {
            Nearest nearest = shared.nearest[0][threadIdx.x];
            nearest.merge(shared.nearest[1][threadIdx.x]);
            job.nearest[share * job.n + begin + threadIdx.x] = nearest;
        }
    }
}

// kFirst: after one product, of all rows; else of those listed.
template <typename T, bool kFirst>
__global__ void __launch_bounds__(kSettleThreads, 4) settle(ManyJob<T> job) {
    const int lane = threadIdx.x % kWarp;
    const int64_t count = kFirst ? job.n : *job.listed_count;
    int64_t base = blockIdx.x * int64_t{kSettleThreads} + threadIdx.x - lane;
    for (; base < count; base += gridDim.x * int64_t{kSettleThreads}) {
        const int64_t at = base + lane;
        Nearest nearest;
        nearest.clear();
        int64_t row = 0;
        if (at < count) {
            row = kFirst ? at : job.listed[at];
            nearest = job.nearest[at];
            for (int64_t s = 1; s < job.splits; ++s) nearest.merge(job.nearest[s * job.n + at]);
        }
        const bool open = at < count && !nearest.settled();
        const bool pair = open && nearest.pair(), many = open && !pair;
        if (at < count && !open) job.labels[row] = nearest.first;

        const unsigned lists = __ballot_sync(0xffffffffu, many);
        int64_t place = 0;
        if (lane == 0 && lists) {
            place = atomic_add(kFirst ? job.listed_count : job.left_count, __popc(lists));
        }
        place = __shfl_sync(0xffffffffu, place, 0) + __popc(lists & ((1u << lane) - 1));
        if (many) (kFirst ? job.listed : job.left)[place] = static_cast<int32_t>(row);

        unsigned pairs = __ballot_sync(0xffffffffu, pair);
        if (lane == 0 && pairs) atomic_add(job.rechecked, __popc(pairs));
        while (pairs) {  // two rows at once, or the last one twice
            const int one = __ffs(static_cast<int>(pairs)) - 1;
            pairs &= pairs - 1;
            const int other = pairs ? __ffs(static_cast<int>(pairs)) - 1 : one;
            pairs &= pairs - 1;
            const int from = octet() < 2 ? one : other;
            const int64_t theirs = __shfl_sync(0xffffffffu, row, from);
            const int first = __shfl_sync(0xffffffffu, nearest.first, from);
            const int second = __shfl_sync(0xffffffffu, nearest.second, from);
            Best best;
            const int64_t center = octet() % 2 ? second : first;
            const double squared = distance(job.x + theirs * job.stride_n, job.centers + center * job.width, job.width);
            best.look_at(squared, static_cast<int>(center));
            best.merge_lanes(kOctet);
            const bool mine = lane == 0 || (lane == 2 * kOctet && other != one);
            if (mine) job.labels[theirs] = best.nowhere() ? 0 : best.center;
        }
    }
}

// A block a row that is left: the distances from all centres.
template <typename T>
__global__ void __launch_bounds__(kSettleThreads) settle_rest(ManyJob<T> job) {
    constexpr int kWarps = kSettleThreads / kWarp;
    SHARED(double, distances, [kWarps]);
    SHARED(int, centers, [kWarps]);
    const int warp = threadIdx.x / kWarp;
    const int64_t count = *job.left_count;
    for (int64_t at = blockIdx.x; at < count; at += gridDim.x) {
        const int64_t row = job.left[at];
        const T* x = job.x + row * job.stride_n;
        Best best;
        for (int64_t base = warp * kOctets; base < job.k; base += kWarps * kOctets) {
            const int64_t center = min(base + octet(), job.k - 1);
            best.look_at(distance(x, job.centers + center * job.width, job.width), static_cast<int>(center));
        }
        best.merge_lanes(kOctet);
        best.merge_lanes(2 * kOctet);
        if (threadIdx.x % kWarp == 0) distances[warp] = best.distance, centers[warp] = best.center;
        __syncthreads();
        if (warp == 0) {
            for (int w = 1; w < kWarps; ++w) best.look_at(distances[w], centers[w]);
            if (best.nowhere()) report_nonfinite(x, row, job.n, job.width, job.status);
            if (threadIdx.x == 0) {
                job.labels[row] = best.nowhere() ? 0 : best.center;
                atomic_add(job.rechecked, 1);
            }
        }
        __syncthreads();  // before the next row's distances
    }
}

constexpr int64_t kMeasuredRows = 8;  // of each octet

// The squared distance of every row to its label's centre, and their sum for each octet's rows.
template <typename T>
__global__ void __launch_bounds__(kSettleThreads)
    measure(const T* x, int64_t n, int64_t width, int64_t stride_n, const double* centers, const int64_t* labels,
            double* distances, double* parts) {
    const int64_t mine = (blockIdx.x * int64_t{kSettleThreads} + threadIdx.x) / kOctet;
    double sum = 0;
    for (int64_t r = 0; r < kMeasuredRows; ++r) {
        const int64_t row = mine * kMeasuredRows + r;
        const int64_t there = min(row, n - 1);  // past the end the warp's other octets need company
        const double squared = distance(x + there * stride_n, centers + labels[there] * width, width);
        if (row >= n || threadIdx.x % kOctet != 0) continue;
        if (distances) distances[row] = squared;
        sum += squared;
    }
    if (threadIdx.x % kOctet == 0 && mine * kMeasuredRows < n && parts) parts[mine] = sum;
}

}  // namespace
}  // namespace resque::cuda
