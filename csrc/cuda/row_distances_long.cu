// row_distances on CUDA, what row_distances_short.cuh leaves over: long rows, many bins, and rows that need numpy's
// rule to the letter.
//
// A warp reads a segment of 3,840 values: first its range; then, once the segments before it in the stream
// are known, again to count, and adds its counts to the row's in whole numbers, in any order. Pairs go
// through in chunks small enough that the second reading finds most of them in the L2. A warp a pair then
// measures.
#include "cuda/row_distances_job.cuh"

namespace resque::cuda {
namespace {

constexpr int64_t kLaneValues = 120;  // of a segment: Counters hold up to 127
constexpr int64_t kSegment = kWarp * kLaneValues;
constexpr int64_t kChunkBytes = 32 << 20;
constexpr int64_t kChunkPairs = 4096;  // at most, so that counts and ranges stay small
constexpr int64_t kMostWarps = 8192;
constexpr int kHistogram = 256;

// Pairs begin ... begin + pairs of a job, and what is kept of them between the kernels.
template <typename F>
struct Chunk {
    int64_t begin, pairs, segments;
    int64_t run;      // pairs that a warp measures one after another
    F* ranges;        // [pairs, 2, segments, 2] least and greatest of old and new
    int32_t* counts;  // [pairs, 2 or 4, base]
};

__device__ __forceinline__ int64_t global_warp() {
    return blockIdx.x * static_cast<int64_t>(kRowWarps) + threadIdx.x / kWarp;
}

// Calls use(value) for every value of a segment, in packs of V, four in flight.
template <int V, typename T, typename Use>
__device__ __forceinline__ void for_each_value(const T* row, int64_t m, int64_t segment, Use use) {
    constexpr int kInFlight = 4;
    const int64_t end = min(m, (segment + 1) * kSegment);
    const int64_t stride = kWarp * V;
    for (int64_t from = segment * kSegment + threadIdx.x % kWarp * V; from < end;
         from += kInFlight * stride) {
        Pack<T, V> values[kInFlight];
#pragma unroll
        for (int k = 0; k < kInFlight; ++k) {
            values[k] = load_pack<T, V>(row + min(from + k * stride, end - V));
        }
#pragma unroll
        for (int k = 0; k < kInFlight; ++k) {
            if (from + k * stride < end) {
#pragma unroll
                for (int v = 0; v < V; ++v) use(to_binned(values[k].value[v]));
            }
        }
    }
}

// A warp a segment of a row.
template <typename T, int V>
__global__ void __launch_bounds__(kRowThreads) find_ranges(Job<T> job, Chunk<Binned<T>> chunk) {
    const int64_t warp = global_warp();
    if (warp >= chunk.pairs * 2 * chunk.segments) return;
    const int64_t row = warp / chunk.segments;
    const int side = row % 2;
    Range<Binned<T>> range;
    for_each_value<V>(job.x[side] + (chunk.begin + row / 2) * job.stride[side], job.m,
                      warp % chunk.segments, [&](Binned<T> x) { range.take(x, x); });
    range.reduce(kWarp);
    if (threadIdx.x % kWarp == 0) {
        chunk.ranges[2 * warp] = range.low;
        chunk.ranges[2 * warp + 1] = range.high;
    }
}

// The range of histogram h of a pair: old, new, and twice the joint one. Every lane of the warp comes.
template <typename F>
__device__ __forceinline__ Range<F> range_of(const Chunk<F>& chunk, int64_t pair, int h) {
    const int64_t rows = h < 2 ? 1 : 2;
    const F* from = chunk.ranges + (pair * 2 + (h == 1 ? 1 : 0)) * chunk.segments * 2;
    Range<F> range;
    for (int64_t s = threadIdx.x % kWarp; s < rows * chunk.segments; s += kWarp) {
        range.take(from[2 * s], from[2 * s + 1]);
    }
    range.reduce(kWarp);
    return range;
}

// A warp a segment of a histogram's row; rows that are not plain are left to measure_pairs.
template <typename T, int V>
__global__ void __launch_bounds__(kRowThreads) count_segments(Job<T> job, Chunk<Binned<T>> chunk) {
    DYN_SHARED(uint4, words);
    const int size = Counters::size_for(job.levels.base);
    const Counters counters(words, threadIdx.x / kWarp * size * Counters::kBytes, job.levels.base,
                            Precision<Binned<T>>::kWholeBits);
    const int64_t warp = global_warp(), rows = warp / chunk.segments;
    const int64_t pair = rows / job.histograms();
    if (pair >= chunk.pairs) return;
    const int h = rows % job.histograms(), side = h % 2, base = job.levels.base;
    const Range<Binned<T>> range = range_of(chunk, pair, h);
    Bins<Binned<T>> bins;
    if (!bins.set(range.low, range.high, base)) return;  // the whole warp

    counters.clear();
    __syncwarp();
    for_each_value<V>(job.x[side] + (chunk.begin + pair) * job.stride[side], job.m,
                      warp % chunk.segments, [&](Binned<T> x) { counters.count(bins.find(x)); });
    __syncwarp();
    int32_t* counts = chunk.counts + rows * base;
    counters.template collect<kWarp>([&](int bin, int, const int(&sums)[4]) {
        for (int i = 0; i < 4; ++i) {
            if (sums[i] > 0) atomicAdd(&counts[min(bin + i, base - 1)], sums[i]);
        }
    });
}

// Sum of |i-th smallest of one - i-th smallest of the other|, of a warp's two histograms: bitonic, both
// sorted in place. Zeros up to the power of two sort to the front on both sides.
__device__ __forceinline__ int64_t sorted_difference(int32_t (&h)[2][kHistogram], int bins) {
    const int lane = threadIdx.x % kWarp;
    int size = 2;
    while (size < bins) size *= 2;
    for (int i = bins + lane; i < size; i += kWarp) h[0][i] = h[1][i] = 0;
    __syncwarp();
    for (int run = 2; run <= size; run *= 2) {
        for (int step = run / 2; step > 0; step /= 2) {
            for (int i = lane; i < size; i += kWarp) {
                const int side = i < size / 2 ? 0 : 1, j = i - side * (size / 2);
                const int low = 2 * j - (j & (step - 1)), high = low + step;
                const bool ascending = (low & run) == 0;
                const int32_t a = h[side][low], b = h[side][high];
                h[side][low] = ascending ? min(a, b) : max(a, b);
                h[side][high] = ascending ? max(a, b) : min(a, b);
            }
            __syncwarp();
        }
    }
    int64_t sum = 0;
    for (int i = lane; i < size; i += kWarp) sum += abs(h[0][i] - h[1][i]);
    return warp_sum(sum);
}

// Sum over i of |old counts up to bin i - new counts up to bin i|.
__device__ __forceinline__ int64_t cumulative_difference(const int32_t (&h)[2][kHistogram], int bins) {
    const int lane = threadIdx.x % kWarp;
    int before = 0;
    int64_t sum = 0;
    for (int from = 0; from < bins; from += kWarp) {
        const int i = from + lane;
        int gap = i < bins ? h[0][i] - h[1][i] : 0;
        for (int step = 1; step < kWarp; step *= 2) {
            const int below = __shfl_up_sync(0xffffffffu, gap, step);
            if (lane >= step) gap += below;
        }
        gap += before;
        if (i < bins) sum += abs(gap);
        before = __shfl_sync(0xffffffffu, gap, kWarp - 1);
    }
    return warp_sum(sum);
}

// Adds a row to a histogram by numpy's rule to the letter; whether the row's own precision did not do.
template <typename T>
__device__ __forceinline__ bool count_by_numpy(const T* row, int64_t m, const Range<Binned<T>>& range,
                                               int bins, int32_t* counts) {
    const int lane = threadIdx.x % kWarp;
    if constexpr (std::is_same_v<Binned<T>, float>) {
        const NumpyBins<float> by(range.low, range.high, bins);
        if (by.ascending) {
            for (int64_t c = lane; c < m; c += kWarp) atomicAdd(&counts[by.find(to_binned(row[c]))], 1);
            return false;
        }
    }
    const double low = range.low, high = range.high;
    const double scale = is_finite(high - low) ? 1 : 0.5;
    const NumpyBins<double> by(low * scale, high * scale, bins);
    for (int64_t c = lane; c < m; c += kWarp) atomicAdd(&counts[by.find(to_binned(row[c]) * scale)], 1);
    return !by.ascending || scale != 1 || std::is_same_v<Binned<T>, float>;
}

// The ranges of a pair's rows.
template <typename F>
struct Ranges {
    Range<F> old_row, new_row;

    __device__ __forceinline__ Range<F> joint() const {
        Range<F> both = old_row;
        both.take(new_row.low, new_row.high);
        return both;
    }
};

// Measures a pair by one warp, whose joint range is low...high: fill(level, joint) puts a level's counts
// into h. Between a level's last read and the next one's fill there is no barrier: both times a lane has
// the bins lane, lane + 32, ... to itself.
template <typename Fill>
__device__ __forceinline__ void measure_pair(const Task& job, int64_t pair, double low, double high,
                                             int32_t (&h)[2][kHistogram], Totals& totals, Fill fill) {
    const int lane = threadIdx.x % kWarp, columns = job.columns();
    const double inverse = job.inverse;
    for (int level = 0; level < job.levels.count; ++level) {
        const int bins = job.levels.base >> level, place = job.levels.place[level];
        if (place < 0) continue;
#pragma unroll 1
        for (int joint = 0; joint < job.histograms() / 2; ++joint) {
            fill(level, joint);
            __syncwarp();

            Terms terms;
#pragma unroll 1
            for (int i = lane; i < bins; i += kWarp) terms.compute(h[0][i], h[1][i]);
            if (job.counts) {
                int32_t* out = job.counts + (pair * job.histograms() + 2 * joint) * job.all_bins +
                               job.levels.offset[level];
                for (int i = lane; i < bins; i += kWarp) {
                    out[i] = h[0][i];
                    out[job.all_bins + i] = h[1][i];
                }
            }
            const double inverse_bins = job.levels.inverse[level];
            double value[4];
            if (joint) {
                const double moved = static_cast<double>(cumulative_difference(h, bins));
                value[0] = moved * inverse * (high * inverse_bins - low * inverse_bins);
            } else {
                const double apart = static_cast<double>(sorted_difference(h, bins));
                value[0] = apart * inverse * inverse_bins;
            }
            value[1] = warp_sum(terms.jensen_shannon) * (0.5 * inverse);
            value[2] = warp_sum(terms.bhattacharyya) * (0.5 * inverse);
            value[3] = warp_sum(terms.kl) * inverse;
#pragma unroll
            for (int d = 0; d < 4; ++d) {
                totals.add(level * columns + joint * 4 + d, value[d]);
                if (lane == 0 && job.rows) {
                    job.rows[(pair * job.bin_counts + place) * columns + joint * 4 + d] = value[d];
                }
            }
        }
    }
}

// Whether all of a row is finite, and its range; what is not, is reported.
template <typename T>
__device__ __forceinline__ bool read_row(const Job<T>& job, int side, int64_t pair,
                                         Range<Binned<T>>& range) {
    const T* row = job.x[side] + pair * job.stride[side];
    for (int64_t c = threadIdx.x % kWarp; c < job.m; c += kWarp) {
        range.take(to_binned(row[c]), to_binned(row[c]));
    }
    range.reduce(kWarp);
    if (is_finite(range.low) && is_finite(range.high)) return true;
    if (job.report) report_nonfinite(row, pair, job.n, job.m, job.status[side]);
    return false;
}

// A pair with a value that is not finite is NaN, unless it is to be left out of the sums.
__device__ __forceinline__ void leave_out(const Task& job, int64_t pair, Totals& totals) {
    const int lane = threadIdx.x % kWarp, columns = job.columns();
    if (job.skip_nonfinite && job.report && lane == 0) atomic_add(job.left_out, 1);
    for (int level = 0; level < job.levels.count; ++level) {
        const int place = job.levels.place[level], bins = job.levels.base >> level;
        if (place < 0) continue;
        for (int d = 0; d < columns; ++d) {
            if (!job.skip_nonfinite) totals.add(level * columns + d, NAN);
            if (lane == 0 && job.rows) {
                job.rows[(pair * job.bin_counts + place) * columns + d] = NAN;
            }
        }
        for (int h = 0; h < job.histograms() && job.counts; ++h) {
            int32_t* out = job.counts + (pair * job.histograms() + h) * job.all_bins;
            for (int i = lane; i < bins; i += kWarp) out[job.levels.offset[level] + i] = 0;
        }
    }
}

// A pair by numpy's rule to the letter.
template <typename T>
__device__ __forceinline__ void mend_pair(const Job<T>& job, int64_t pair, int32_t (&h)[2][kHistogram],
                                          Totals& totals) {
    const int lane = threadIdx.x % kWarp;
    Ranges<Binned<T>> ranges;
    const bool finite = read_row(job, 0, pair, ranges.old_row);
    if (!read_row(job, 1, pair, ranges.new_row) || !finite) {
        leave_out(job, pair, totals);
        return;
    }
    const Range<Binned<T>> both = ranges.joint();
    measure_pair(job, pair, both.low, both.high, h, totals, [&](int level, int joint) {
        const int bins = job.levels.base >> level;
        for (int i = lane; i < bins; i += kWarp) h[0][i] = h[1][i] = 0;
        __syncwarp();
#pragma unroll 1
        for (int side = 0; side < 2; ++side) {
            const bool wide = count_by_numpy(
                job.x[side] + pair * job.stride[side], job.m,
                joint ? both : side ? ranges.new_row : ranges.old_row, bins, h[side]);
            if (wide && lane == 0) atomic_add(&job.float64_edges[job.levels.place[level]], 1);
        }
    });
}

// A warp the pairs of its slot. Those that are not plain are marked.
template <typename F>
__global__ void __launch_bounds__(kRowThreads, 4) measure_pairs(Task job, Chunk<F> chunk) {
    SHARED(int32_t, shared, [kRowWarps][2][kHistogram]);
    int32_t(&h)[2][kHistogram] = shared[threadIdx.x / kWarp];
    const int lane = threadIdx.x % kWarp, base = job.levels.base;
    const int64_t first = global_warp() * chunk.run;
    if (first >= chunk.pairs) return;  // the whole warp
    Totals totals;
    for (int64_t i = first; i < min(first + chunk.run, chunk.pairs); ++i) {
        const Ranges<F> ranges{range_of(chunk, i, 0), range_of(chunk, i, 1)};
        const Range<F> both = ranges.joint();
        Bins<F> bins;
        const bool plain = bins.set(ranges.old_row.low, ranges.old_row.high, base) &&
                           bins.set(ranges.new_row.low, ranges.new_row.high, base) &&
                           (!job.shared || bins.set(both.low, both.high, base));
        const int64_t pair = chunk.begin + i;
        if (!plain) {
            if (lane == 0) atomicOr(&job.marks[pair / job.share.tile], 1u << pair % job.share.tile);
            continue;
        }
        const int32_t* counts = chunk.counts + i * job.histograms() * base;
        measure_pair(job, pair, both.low, both.high, h, totals, [&](int level, int joint) {
            for (int b = lane; b < base >> level; b += kWarp) {
                const int32_t* from = counts + 2 * joint * base + (b << level);
                int old_sum = 0, new_sum = 0;
                for (int k = 0; k < 1 << level; ++k) {
                    old_sum += from[k];
                    new_sum += from[base + k];
                }
                h[0][b] = old_sum;
                h[1][b] = new_sum;
            }
        });
    }
    totals.write(job, chunk.begin / chunk.run + global_warp());
}

// A warp its tiles: on ordinary data nothing is marked, and it reads a word and leaves.
template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4) mend_pairs(Job<T> job) {
    SHARED(int32_t, shared, [kRowWarps][2][kHistogram]);
    const int64_t warp = global_warp();
    const int64_t end = min((warp + 1) * job.share.run, job.share.tiles);
    Totals totals;
    bool any = false;
    for (int64_t tile = warp * job.share.run; tile < end; ++tile) {
        for (uint32_t marks = job.marks[tile]; marks != 0; marks &= marks - 1) {
            const int64_t pair = tile * job.share.tile + __ffs(static_cast<int>(marks)) - 1;
            mend_pair(job, pair, shared[threadIdx.x / kWarp], totals);
            any = true;
        }
    }
    if (any) totals.write(job, warp);
}

int64_t segments_of(int64_t m) { return ceil_div(m, kSegment); }

Share share_of(int64_t n) { return Share(n, 1, kMostWarps); }

// Pairs of a chunk: whole runs, so that a slot is one warp's.
int64_t chunk_pairs(int64_t n, int64_t m, int64_t value_bytes) {
    const int64_t run = share_of(n).run;
    const int64_t pairs = max(min(kChunkBytes / (2 * m * value_bytes), kChunkPairs), int64_t{1});
    return min(n, ceil_div(pairs, run) * run);
}

int64_t blocks_for(int64_t warps) { return ceil_div(warps, kRowWarps); }

template <typename T, int V>
void launch_segments(const Job<T>& job, const Chunk<Binned<T>>& chunk, cudaStream_t stream) {
    const int64_t counted = chunk.pairs * job.histograms();
    check(cudaMemsetAsync(chunk.counts, 0, counted * job.levels.base * 4, stream), "cudaMemsetAsync");
    LAUNCH((find_ranges<T, V>), blocks_for(chunk.pairs * 2 * chunk.segments), kRowThreads, 0, stream)(
        job, chunk);
    const int bytes = kRowWarps * Counters::size_for(job.levels.base) * Counters::kBytes;
    LAUNCH((count_segments<T, V>), blocks_for(counted * chunk.segments), kRowThreads, bytes, stream)(
        job, chunk);
}

}  // namespace

int64_t long_slots(int64_t n) { return share_of(n).warps; }

int64_t long_workspace(int64_t n, int64_t m, int64_t value_bytes, int64_t all_bins, bool shared) {
    if (n == 0) return 0;
    const int64_t pairs = chunk_pairs(n, m, value_bytes);
    const int64_t bins = min(all_bins, int64_t{kHistogram});
    return pairs * (4 * segments_of(m) * value_bytes + (shared ? 4 : 2) * bins * 4);
}

template <typename T>
void launch_long(const Job<T>& job, void* space, cudaStream_t stream) {
    using F = Binned<T>;
    constexpr int V = 16 / sizeof(T);
    bool wide = job.m % V == 0;
    for (int side = 0; side < 2; ++side) {
        wide = wide && reinterpret_cast<uintptr_t>(job.x[side]) % 16 == 0 && job.stride[side] % V == 0;
    }
    const int64_t pairs = chunk_pairs(job.n, job.m, sizeof(F)), segments = segments_of(job.m);
    const int64_t run = share_of(job.n).run;
    F* ranges = static_cast<F*>(space);
    int32_t* counts = reinterpret_cast<int32_t*>(ranges + pairs * 4 * segments);
    check(cudaMemsetAsync(job.marks, 0, job.share.tiles * 4, stream), "cudaMemsetAsync");
    for (int64_t begin = 0; begin < job.n; begin += pairs) {
        const Chunk<F> chunk{begin, min(pairs, job.n - begin), segments, run, ranges, counts};
        if (wide) {
            launch_segments<T, V>(job, chunk, stream);
        } else {
            launch_segments<T, 1>(job, chunk, stream);
        }
        LAUNCH((measure_pairs<F>), blocks_for(ceil_div(chunk.pairs, run)), kRowThreads, 0, stream)(job,
                                                                                             chunk);
    }
    launch_mend(job, stream);
}

template <typename T>
void launch_mend(const Job<T>& job, cudaStream_t stream) {
    LAUNCH((mend_pairs<T>), blocks_for(job.share.warps), kRowThreads, 0, stream)(job);
}

template void launch_long(const Job<float>&, void*, cudaStream_t);
template void launch_long(const Job<double>&, void*, cudaStream_t);
template void launch_long(const Job<__half>&, void*, cudaStream_t);
template void launch_long(const Job<__nv_bfloat16>&, void*, cudaStream_t);
template void launch_mend(const Job<float>&, cudaStream_t);
template void launch_mend(const Job<double>&, cudaStream_t);
template void launch_mend(const Job<__half>&, cudaStream_t);
template void launch_mend(const Job<__nv_bfloat16>&, cudaStream_t);

}  // namespace resque::cuda
