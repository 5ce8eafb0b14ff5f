// What the kernels of row_distances share: their work, who does which part, counting, adding up.
#pragma once

#include "cuda/common.cuh"
#include "cuda/row_distances_bins.cuh"
#include "cuda/row_distances_terms.cuh"
#include "resque.h"

namespace resque::cuda {

constexpr int kRowThreads = 128;
constexpr int kRowWarps = kRowThreads / kWarp;
constexpr int kMostLevels = 8;  // 256, 128, ... 2

// Numbers of bins that are counted together: level l has base >> l bins.
struct Levels {
    int base, count;
    int place[kMostLevels];   // where it stands among the numbers of bins asked for; -1: was not
    int offset[kMostLevels];  // where its counts begin in a histogram of all
    double inverse[kMostLevels];  // 1 / bins: a division is a function call on the device
};

// Pairs dealt to warps: `tile` pairs at a time, `run` tiles one after another to each warp, which adds up
// its own. Made from sizes alone, so that sums have one order.
struct Share {
    int64_t tile, tiles, run, warps;

    Share(int64_t n, int64_t pairs, int64_t most_warps) : tile(pairs), tiles(ceil_div(n, tile)) {
        run = max(ceil_div(tiles, most_warps), int64_t{1});
        warps = ceil_div(tiles, run);
    }
};

// All that is to be done, but for the rows.
struct Task {
    int64_t n, m;
    double inverse;  // 1 / m
    Levels levels;
    Share share;
    bool shared, skip_nonfinite;
    bool report;  // what is not finite: in one job of the call
    int64_t bin_counts, all_bins;
    double* partial;   // [bin_counts, 4 or 8, slots] zeros at first
    int64_t slots;     // at least as many as there are warps
    uint32_t* marks;   // [tiles] a bit for every pair that mend_pairs is to do
    double* rows;      // from here on as in RowDistances
    int32_t* counts;
    int64_t* float64_edges;
    int64_t* status[2];
    int64_t* left_out;

    __host__ __device__ __forceinline__ int histograms() const { return shared ? 4 : 2; }
    __host__ __device__ __forceinline__ int columns() const { return shared ? 8 : 4; }
};

template <typename T>
struct Job : Task {
    const T* x[2];  // old, new: [n, m]
    int64_t stride[2];
};

// Rows of up to 2,048 values (float64: 1,024) and up to 64 bins, which is what row_distances_short.cuh
// takes if a block may have `most_shared` bytes of shared memory; whether it has taken the job.
template <typename T>
bool launch_short(const Job<T>& job, int64_t most_shared, cudaStream_t stream);

// Rows of any length and any bins: row_distances_long.cu. `space` is long_workspace() bytes; the warps
// that measure need long_slots().
int64_t long_slots(int64_t n);
int64_t long_workspace(int64_t n, int64_t m, int64_t value_bytes, int64_t all_bins, bool shared);
template <typename T>
void launch_long(const Job<T>& job, void* space, cudaStream_t stream);
// The pairs that are marked, by numpy's rule to the letter.
template <typename T>
void launch_mend(const Job<T>& job, cudaStream_t stream);

constexpr int kMostBins = 64;  // of what launch_short takes

namespace {

template <typename V>
__device__ __forceinline__ V warp_sum(V value) {
    for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// What a warp adds up over its pairs: lane v holds sums v and v + 32 of up to 8 levels of 8 columns.
struct Totals {
    double below = 0, above = 0;

    // The same number from every lane.
    __device__ __forceinline__ void add(int v, double value) {
        const bool mine = static_cast<int>(threadIdx.x) % kWarp == v % kWarp;
        below += mine && v < kWarp ? value : 0;
        above += mine && v >= kWarp ? value : 0;
    }

    __device__ __forceinline__ void write(const Task& job, int64_t slot) const {
        for (int half = 0; half < 2; ++half) {
            const int v = threadIdx.x % kWarp + half * kWarp;
            const int level = v / job.columns(), column = v % job.columns();
            if (level >= job.levels.count || job.levels.place[level] < 0) continue;
            const int64_t out = job.levels.place[level] * job.columns() + column;
            job.partial[out * job.slots + slot] += half ? above : below;
        }
    }
};

// Counters of one byte, private to a lane, word by lane: counter c of a lane is byte c % 4 of its word
// c / 4, and the words of the 32 lanes lie side by side. So every access of a warp goes to 32 banks, and
// nothing depends on the data. A lane may count to 127.
struct Counters {
    unsigned char* space;  // where the block's shared memory begins: one register of all its threads
    uint4* words;          // [size] of 32 words, as 8 uint4
    int size;
    uint32_t start;  // byte of this lane's counter 0 from `space` on, less what `zero` adds

    // Counters 0 ... bins at space + offset, which count() knows as `zero`, zero + 1, ...
    __device__ Counters(uint4* block, int offset, int bins, uint32_t zero)
        : space(reinterpret_cast<unsigned char*>(block)),
          words(reinterpret_cast<uint4*>(space + offset)), size(size_for(bins)),
          start(offset + threadIdx.x % kWarp * 4 - zero * kWarp) {}

    __host__ __device__ static int size_for(int bins) { return bins / 4 + 1; }  // counter `bins` too
    static constexpr int kBytes = kWarp * 4;  // of a word of every lane

    __device__ __forceinline__ void clear() const {
        for (int i = threadIdx.x % kWarp; i < size * 8; i += kWarp) words[i] = {0, 0, 0, 0};
    }

    // Byte c % 4 of word c / 4 is byte 32 c - 31 (c % 4) of the lane's: two multiply-adds.
    __device__ __forceinline__ void count(uint32_t counter) const {
        const uint32_t at = counter * kWarp + start - (counter & 3) * (kWarp - 1);
        ++space[at];
    }

    // Calls put(c, row, sums) with counters c ... c + 3 summed over each `Lanes` neighbouring lanes, which
    // are a row of 32 / Lanes, and clears. Two words add up as bytes without a carry, then as 16 bits.
    template <int Lanes, typename Put>
    __device__ __forceinline__ void collect(Put put) const {
        constexpr int kQuads = Lanes / 4;  // uint4 of a word and a row
        for (int from = 0; from < size * 8; from += kWarp) {
            const int i = from + threadIdx.x % kWarp;
            uint32_t even = 0, odd = 0;
            if (i < size * 8) {
                const uint4 word = words[i];
                words[i] = {0, 0, 0, 0};
                const uint32_t a = word.x + word.y, b = word.z + word.w;
                even = (a & 0x00ff00ffu) + (b & 0x00ff00ffu);
                odd = (a >> 8 & 0x00ff00ffu) + (b >> 8 & 0x00ff00ffu);
            }
            for (int step = 1; step < kQuads; step *= 2) {
                even += __shfl_xor_sync(0xffffffffu, even, step);
                odd += __shfl_xor_sync(0xffffffffu, odd, step);
            }
            if (i < size * 8 && i % kQuads == 0) {
                const int sums[4] = {static_cast<int>(even & 0xffff), static_cast<int>(odd & 0xffff),
                                     static_cast<int>(even >> 16), static_cast<int>(odd >> 16)};
                put(i / 8 * 4, i % 8 / kQuads, sums);
            }
        }
    }
};

}  // namespace
}  // namespace resque::cuda
