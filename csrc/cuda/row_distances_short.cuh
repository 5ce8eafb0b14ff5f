// row_distances on CUDA: rows of up to 2,048 values (float64: 1,024) and up to 64 bins. Each type of the
// rows is compiled by itself, as it takes ptxas seconds: row_distances_float32.cu and the like.
#pragma once

#include "cuda/row_distances_job.cuh"

namespace resque::cuda {
namespace {

constexpr int kTable = 448;     // entries; larger counts are rare, and their logarithms are computed
constexpr int kPitch = kWarp + 1;  // words from bin to bin, so that a pair's bins lie in different banks

// The shared memory of measure_tiles: the tables, then for each warp its counters and its histograms.
struct Room {
    int table, counters, histogram, warp, bytes;  // entries; uint4; words; bytes of a warp; of a block

    __host__ __device__ Room(int bins, int64_t m, bool shared) {
        table = static_cast<int>(min(2 * m + 2, int64_t{kTable}));  // even, so that 24 bytes each align
        counters = Counters::size_for(bins) * 8;
        histogram = Counters::size_for(bins) * 4 * kPitch;  // bin `bins` too, and a few more
        warp = static_cast<int>(ceil_div(counters * 16 + histogram * (shared ? 8 : 4), 16)) * 16;
        bytes = table * 24 + kRowWarps * warp;
    }
};

// One level of the pair whose histograms stand in `column`, and of 31 others beside it: the four columns
// of its own ranges, or (`joint`) of the joint range.
__device__ __forceinline__ void measure_level(const Task& job, const Tables& tables, int level,
                                              const uint32_t* column, bool joint, double low,
                                              double high, int64_t pair, bool valid, Totals& totals) {
    const int bins = job.levels.base >> level, place = job.levels.place[level];
    Terms terms;
    int gap = 0, moved = 0;
    for (int from = 0; from < bins; from += 4) {
        int a[4], b[4], most = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            // Bins behind the last are empty, and add nothing.
            const uint32_t word = from + i < bins ? column[(from + i) * kPitch] : 0;
            a[i] = word & 0xffff;
            b[i] = word >> 16;
            most = max(most, a[i] + b[i]);
            gap += a[i] - b[i];
            moved += abs(gap);
        }
        if (most < tables.size) {
#pragma unroll
            for (int i = 0; i < 4; ++i) terms.look_up(tables, a[i], b[i]);
        } else {
#pragma unroll 1
            for (int i = 0; i < 4; ++i) {
                const uint32_t word = from + i < bins ? column[(from + i) * kPitch] : 0;
                terms.compute(word & 0xffff, word >> 16);
            }
        }
    }
    const double inverse = job.inverse, inverse_bins = job.levels.inverse[level];
    double value[4];
    if (joint) {
        value[0] = moved * inverse * (high * inverse_bins - low * inverse_bins);
    } else {
        const int apart = bins <= 16   ? sorted_difference<16>(column, kPitch, bins)
                          : bins <= 32 ? sorted_difference<32>(column, kPitch, bins)
                                       : sorted_difference<64>(column, kPitch, bins);
        value[0] = apart * inverse * inverse_bins;
    }
    value[1] = terms.jensen_shannon * (0.5 * inverse);
    value[2] = terms.bhattacharyya * (0.5 * inverse);
    value[3] = terms.kl * inverse;

    const int from = joint ? 4 : 0;
#pragma unroll
    for (int d = 0; d < 4; ++d) {
        totals.add(level * job.columns() + from + d, warp_sum(valid ? value[d] : 0));
        if (valid && job.rows) {
            job.rows[(pair * job.bin_counts + place) * job.columns() + from + d] = value[d];
        }
    }
    if (valid && job.counts) {
        int32_t* out = job.counts + (pair * job.histograms() + (joint ? 2 : 0)) * job.all_bins +
                       job.levels.offset[level];
        for (int i = 0; i < bins; ++i) {
            out[i] = column[i * kPitch] & 0xffff;
            out[job.all_bins + i] = column[i * kPitch] >> 16;
        }
    }
}

// A warp takes 32 / Lanes rows at a time into registers, `Packs` packs of V values a lane, and counts them
// in counters private to each lane. The counts go to shared memory as one word a bin and pair, old row
// and new, 32 pairs side by side; then every lane measures one pair.
template <typename T, int V, int Lanes, int Packs>
__global__ void __launch_bounds__(kRowThreads, sizeof(T) == 8 ? 3 : 4) measure_tiles(Job<T> job) {
    using F = Binned<T>;
    constexpr int kRows = kWarp / Lanes;
    DYN_SHARED(uint4, space);
    const Room room(job.levels.base, job.m, job.shared);
    LogRoot* table = reinterpret_cast<LogRoot*>(space);
    double* halves = reinterpret_cast<double*>(table + room.table);
    for (int i = threadIdx.x; i < room.table; i += kRowThreads) {
        table[i] = log_root(i);
        halves[i] = log_half(i);
    }
    const Tables tables{table, halves, room.table};

    const int lane = threadIdx.x % kWarp;
    const int mine = room.table * 24 + threadIdx.x / kWarp * room.warp;
    const Counters counters(space, mine, job.levels.base, Precision<F>::kWholeBits);
    uint32_t* histograms = reinterpret_cast<uint32_t*>(space + mine / 16 + room.counters);  // own, joint
    counters.clear();
    for (int i = lane; i < room.histogram * (job.shared ? 2 : 1); i += kWarp) histograms[i] = 0;
    __syncthreads();

    const int64_t warp = blockIdx.x * static_cast<int64_t>(kRowWarps) + threadIdx.x / kWarp;
    if (warp >= job.share.warps) return;  // the whole warp
    const int base = job.levels.base, column = lane % Lanes * V;
    const int left = static_cast<int>(job.m) - column;  // of a row, from this lane's first value on
    const int pairs = static_cast<int>(job.share.tile);
    const int64_t end = min((warp + 1) * job.share.run, job.share.tiles);
    for (int64_t tile = warp * job.share.run; tile < end; ++tile) {
        bool plain = true;  // of the pair that this lane will measure, and the joint range
        F low = 0, high = 0;
        for (int first = 0; first < pairs; first += kRows) {
            // Behind the last pair: the last once more, for nothing.
            const int64_t row = min(tile * pairs + first + lane / Lanes, job.n - 1);
            Range<F> both;
            bool all_plain = true;
#pragma unroll 1
            for (int h = 0; h < job.histograms(); ++h) {
                const int side = h % 2;
                const T* x = job.x[side] + row * job.stride[side] + column;
                Pack<T, V> values[Packs];
#pragma unroll
                for (int k = 0; k < Packs; ++k) {
                    // Behind the row's end: its last pack once more, which alters no range.
                    values[k] = load_pack<T, V>(x + min(k * Lanes * V, left - V));
                }
                Range<F> range;
                if (h < 2) {
#pragma unroll
                    for (int k = 0; k < Packs; ++k) {
#pragma unroll
                        for (int v = 0; v < V; ++v) {
                            const F value = to_binned(values[k].value[v]);
                            range.take(value, value);
                        }
                    }
                    range.reduce(Lanes);
                    both.take(range.low, range.high);
                } else {
                    range = both;
                }
                Bins<F> bins;
                if (bins.set(range.low, range.high, base)) {
#pragma unroll
                    for (int k = 0; k < Packs; ++k) {
                        if (k * Lanes * V < left) {
#pragma unroll
                            for (int v = 0; v < V; ++v) {
                                counters.count(bins.find(to_binned(values[k].value[v])));
                            }
                        }
                    }
                } else {
                    all_plain = false;
                }
                __syncwarp();
                uint32_t* out = histograms + h / 2 * room.histogram + first;
                counters.template collect<Lanes>([&](int bin, int r, const int(&sums)[4]) {
                    uint32_t* word = out + bin * kPitch + r;
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        word[i * kPitch] = side ? word[i * kPitch] + (sums[i] << 16) : sums[i];
                    }
                });
                __syncwarp();
            }
            const unsigned fits = __ballot_sync(0xffffffffu, all_plain);
            const int source = (lane - first) % kRows * Lanes & (kWarp - 1);
            const F pair_low = __shfl_sync(0xffffffffu, both.low, source);
            const F pair_high = __shfl_sync(0xffffffffu, both.high, source);
            if (lane >= first && lane < first + kRows) {
                plain = fits >> source & 1;
                low = pair_low;
                high = pair_high;
            }
        }

        const int64_t pair = tile * pairs + lane;
        const bool present = lane < pairs && pair < job.n;
        const unsigned marks = __ballot_sync(0xffffffffu, present && !plain);
        if (lane == 0) job.marks[tile] = marks;
        Totals totals;
        for (int level = 0; level < job.levels.count; ++level) {
            const int bins = base >> level;
#pragma unroll 1
            for (int h = 0; h < job.histograms() / 2; ++h) {
                uint32_t* words = histograms + h * room.histogram + lane;
                if (level == 0) {
                    words[(bins - 1) * kPitch] += words[bins * kPitch];
                } else {
                    for (int i = 0; i < bins; ++i) {
                        words[i * kPitch] = words[2 * i * kPitch] + words[(2 * i + 1) * kPitch];
                    }
                }
                if (job.levels.place[level] < 0) continue;
                measure_level(job, tables, level, words, h == 1, low, high, pair, present && plain, totals);
            }
        }
        totals.write(job, warp);
    }
}

template <typename T, int V, int Lanes, int Packs>
void launch_tiles(const Job<T>& job, cudaStream_t stream) {
    const Room room(job.levels.base, job.m, job.shared);
    allow_shared(measure_tiles<T, V, Lanes, Packs>, room.bytes);
    LAUNCH((measure_tiles<T, V, Lanes, Packs>), ceil_div(job.share.warps, kRowWarps), kRowThreads,
           room.bytes, stream)(job);
}

// A lane has room for 256 bytes of a row, and counts no more than 64 values.
template <typename T>
constexpr int kValues = sizeof(T) == 8 ? 32 : 64;

}  // namespace

template <typename T>
bool launch_short(const Job<T>& job, int64_t most_shared, cudaStream_t stream) {
    if (job.m > kWarp * kValues<T> || job.levels.base > kMostBins) return false;
    // 64 bins with the joint range take 89 KB: too much for compute capability 7.5, which has 64 KB.
    if (Room(job.levels.base, job.m, job.shared).bytes > most_shared) return false;
#ifdef RESQUE_FEWEST_KERNELS
    launch_tiles<T, 1, kWarp, kValues<T>>(job, stream);  // fits every row: the same bits, more slowly
#else
    constexpr int V = 16 / sizeof(T);
    bool wide = job.m % V == 0;
    for (int side = 0; side < 2; ++side) {
        wide = wide && reinterpret_cast<uintptr_t>(job.x[side]) % 16 == 0 && job.stride[side] % V == 0;
    }
    // The fewer lanes share a row, the less there is to add up, but they need that many pairs.
    if (!wide) {
        launch_tiles<T, 1, kWarp, kValues<T>>(job, stream);
    } else if (job.m <= 4 * 32 && job.share.tile >= 8) {
        launch_tiles<T, V, 4, 32 / V>(job, stream);
    } else if (job.m <= 8 * kValues<T> && job.share.tile >= 4) {
        launch_tiles<T, V, 8, kValues<T> / V>(job, stream);
    } else {
        launch_tiles<T, V, kWarp, kValues<T> / V>(job, stream);
    }
#endif
    launch_mend(job, stream);
    return true;
}

}  // namespace resque::cuda
