// value_histogram on CUDA: the counts behind ARM.
//
// One histogram: every block counts into a table in shared memory, 32 bits a counter, with atomics that
// want no answer: the hardware merges the lanes of a warp that add 1 to the same place, so that half
// zeros, or a single value all over, cost no more than anything else. Then the block adds what it found
// to the 64-bit counts. All is integer, so the order in which things happen never shows.
//
// A table of all 65,536 patterns of 16 bits would not fit. It holds a window of magnitudes, the same
// for both signs, and zero: for exponents of 8 bits 127 of the 254, from 2^-67 to 2^59, for float16 as
// many as fit, on compute capability 9.0 all below 2^13. What lies outside goes to the counts straight away,
// slower and as right; NaN and infinity are never inside, so telling them apart costs nothing.
//
// One block of 1,024 threads fills a multiprocessor. To keep up with 3 TB/s, each of 132 has 3.2 float32
// a cycle to count; 16 KB in flight cover 700 ns of latency, and 64 KB are.
#include <algorithm>

#include "cuda/common.cuh"
#include "dispatch.h"
#include "validate.h"

namespace resque::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kPacksInFlight = 4;            // of 16 bytes
constexpr int64_t kValuesPerBlock = 16384;   // at least: clearing and adding a table takes as long
constexpr int64_t kValuesPerLaunch = int64_t{1} << 31;  // what 32-bit counters hold for certain
constexpr int64_t kTableBytes = 128 << 10;   // the rest of the 228 KB of 9.0 is L1 for the loads

__device__ __forceinline__ uint32_t word(float x) { return __float_as_uint(x); }
__device__ __forceinline__ uint32_t word(__half x) { return __half_as_ushort(x); }
__device__ __forceinline__ uint32_t word(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }

// As float32, cut toward zero: a rounded value could lie beyond the bin that it belongs to. A pattern of
// one less is the next value toward zero.
__device__ __forceinline__ uint32_t word(double x) {
    const float rounded = __double2float_rn(x);
    const bool beyond = fabs(static_cast<double>(rounded)) > fabs(x);
    return __float_as_uint(rounded) - (beyond && fabs(x) < 0x1p128 ? 1 : 0);
}

// Everything the kernels read and write, but for the values.
struct Job {
    int shift;
    uint32_t half, finite;   // see ValueBins
    uint32_t first, window;  // the magnitudes that a table holds: `window` from `first` on
    int64_t* counts;
    int64_t* status;

    // Where the pattern stands in the order of the values.
    __device__ __forceinline__ int64_t bin(bool negative, uint32_t magnitude) const {
        return negative ? half - 1 - magnitude : half + magnitude;
    }

    // A value that no table holds; `from_end` is its place.
    __device__ __forceinline__ void count_one(int64_t* counts, uint32_t pattern, int64_t from_end) const {
        const uint32_t magnitude = pattern & (half - 1);
        if (magnitude < finite) {
            atomic_add(&counts[bin(pattern >= half, magnitude)], 1);
        } else {
            atomic_add(&status[kNonfiniteCount], 1);
            atomic_max(&status[kNonfiniteFromEnd], from_end);
        }
    }
};

// The table of a block: for either sign `window` counters, and one for zero and all that lies outside.
class Table {
   public:
    __device__ __forceinline__ Table(uint32_t* counters, const Job& job)
        : counters_(counters), job_(job), side_(job.window + 1) {}

    __device__ __forceinline__ void clear() {
        for (uint32_t i = threadIdx.x; i < 2 * side_; i += kThreads) counters_[i] = 0;
    }

    // Not zero, and not in the window.
    __device__ __forceinline__ bool outside(uint32_t pattern) const {
        const uint32_t magnitude = pattern & (job_.half - 1);
        return magnitude - job_.first >= job_.window && magnitude != 0;
    }

    // Counts the pattern, without a branch; true if it is outside, and take_back() has to follow.
    __device__ __forceinline__ bool count(uint32_t pattern) {
        const uint32_t above = (pattern & (job_.half - 1)) - job_.first;  // huge where it is below
        atomicAdd(&counters_[side(pattern) + min(above, job_.window)], 1u);
        return outside(pattern);
    }

    __device__ __forceinline__ void take_back(uint32_t pattern) {
        atomicSub(&counters_[side(pattern) + job_.window], 1u);
    }

    // Each block begins elsewhere, so that they do not queue for the same counts.
    __device__ __forceinline__ void add_to_counts() const {
        const uint32_t size = 2 * side_;
        const uint32_t start = static_cast<uint32_t>(static_cast<uint64_t>(blockIdx.x) * size / gridDim.x);
        for (uint32_t k = threadIdx.x; k < size; k += kThreads) {
            const uint32_t i = k + start < size ? k + start : k + start - size;
            const uint32_t found = counters_[i];
            if (found == 0) continue;
            const bool negative = i >= side_;
            const uint32_t place = negative ? i - side_ : i;
            const uint32_t magnitude = place == job_.window ? 0 : job_.first + place;
            atomic_add(&job_.counts[job_.bin(negative, magnitude)], found);
        }
    }

   private:
    __device__ __forceinline__ uint32_t side(uint32_t pattern) const {
        return pattern >= job_.half ? side_ : 0;
    }

    uint32_t* counters_;
    const Job& job_;
    uint32_t side_;
};

// n <= 2^31 values of x, of which the first `head` lie before an address of 16 bytes; `from_end` is the
// place of the first.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    count_values(const T* x, uint32_t n, uint32_t head, int64_t from_end, Job job) {
    constexpr int kPack = 16 / sizeof(T);
    DYN_SHARED(uint32_t, counters);
    Table table(counters, job);
    table.clear();
    __syncthreads();

    const auto count_again = [&](uint32_t i, uint32_t end) {
        for (; i < end; ++i) {
            const uint32_t pattern = word(x[i]) >> job.shift;
            if (!table.outside(pattern)) continue;
            table.take_back(pattern);
            job.count_one(job.counts, pattern, from_end - i);
        }
    };
    const uint32_t packs = (n - head) / kPack, stride = gridDim.x * kThreads;
    const T* const body = x + head;
    for (uint32_t first = blockIdx.x * kThreads + threadIdx.x; first < packs;
         first += kPacksInFlight * stride) {
        Pack<T, kPack> pack[kPacksInFlight];
#pragma unroll
        for (int k = 0; k < kPacksInFlight; ++k) {
            const uint32_t at = min(first + k * stride, packs - 1);  // past the end: not counted
            pack[k] = load_pack<T, kPack>(body + static_cast<int64_t>(at) * kPack);
        }
#pragma unroll
        for (int k = 0; k < kPacksInFlight; ++k) {
            if (first + k * stride >= packs) break;
            const uint32_t at = head + (first + k * stride) * kPack;
            bool outside = false;
#pragma unroll
            for (int v = 0; v < kPack; ++v) {
                outside |= table.count(word(pack[k].value[v]) >> job.shift);
            }
            if (outside) count_again(at, at + kPack);
        }
    }
    // What is left at either end, under 16 bytes each.
    const uint32_t rest = n - packs * kPack;
    if (blockIdx.x == 0 && threadIdx.x < rest) {
        const uint32_t i = threadIdx.x < head ? threadIdx.x : packs * kPack + threadIdx.x;
        if (table.count(word(x[i]) >> job.shift)) count_again(i, i + 1);
    }
    __syncthreads();
    table.add_to_counts();
}

// A histogram a channel, for values of which none lie side by side in one: no tables. Neighbouring
// threads take neighbours in memory, [outer][inner], channels inside if stride_c is 1, else positions.
template <typename T>
__global__ void __launch_bounds__(256) count_channels(Features x, Job job) {
    const int64_t size = x.n * x.channels * x.positions;
    const int64_t stride = gridDim.x * static_cast<int64_t>(blockDim.x);
    for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < size; i += stride) {
        const bool channels_inside = x.stride_c == 1;
        const int64_t inner = channels_inside ? x.channels : x.positions;
        const int64_t outer = channels_inside ? x.positions : x.channels;
        const int64_t in = i % inner, out = i / inner % outer, row = i / inner / outer;
        const int64_t c = channels_inside ? in : out, p = channels_inside ? out : in;
        const T value = static_cast<const T*>(x.data)[row * x.stride_n + c * x.stride_c + p * x.stride_p];
        const int64_t flat = (row * x.channels + c) * x.positions + p;
        job.count_one(job.counts + 2 * int64_t{job.half} * c, word(value) >> job.shift, size - flat);
    }
}

// The window of magnitudes for a table of so many bytes. Its middle is 2^-4, or nearer to the middle of
// what there is.
void choose_window(const ValueHistogram& a, const ValueBins& bins, int64_t bytes, Job* job) {
    const int64_t most = bytes / static_cast<int64_t>(sizeof(uint32_t)) / 2 - 1;
    job->window = static_cast<uint32_t>(std::min<int64_t>(most, bins.finite));
    const int exponent = ValueBins::exponent_bits(a.x.dtype);
    const int64_t one_exponent = bins.half >> exponent;
    const int64_t middle = ((int64_t{1} << (exponent - 1)) - 1 - 4) * one_exponent;
    job->first = static_cast<uint32_t>(
        std::clamp<int64_t>(middle - job->window / 2, 0, bins.finite - job->window));
}

template <typename T>
void launch_all(const ValueHistogram& a, Job job, const ValueBins& bins, int device,
                cudaStream_t stream) {
    const int64_t fits = most_shared(device);
    choose_window(a, bins, a.x.dtype == DType::float16 ? fits : std::min(fits, kTableBytes), &job);
    const int64_t table = 2 * (int64_t{job.window} + 1) * static_cast<int64_t>(sizeof(uint32_t));
    check(cudaFuncSetAttribute(count_values<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(table)),
          "cudaFuncSetAttribute");
    const int64_t per_device = device_attribute(cudaDevAttrMultiProcessorCount, device);
    const int64_t total = a.x.channels;
    for (int64_t start = 0; start < total; start += kValuesPerLaunch) {
        const T* x = static_cast<const T*>(a.x.data) + start;
        const int64_t n = std::min(kValuesPerLaunch, total - start);
        const int64_t off = reinterpret_cast<uintptr_t>(x) % 16 / sizeof(T);
        const int64_t head = std::min<int64_t>(off ? 16 / sizeof(T) - off : 0, n);
        const int64_t blocks = std::min(per_device, ceil_div(n, kValuesPerBlock));
        LAUNCH((count_values<T>), blocks, kThreads, table, stream)
        (x, static_cast<uint32_t>(n), static_cast<uint32_t>(head), total - start, job);
    }
}

}  // namespace

int64_t value_histogram_workspace(const Features&, bool, int64_t) { return 0; }

void value_histogram(const ValueHistogram& a, int device, void* stream) {
    validate(a);
    const DeviceGuard guard(device);
    const ValueBins bins(a.x.dtype, a.bits);
    const Job job{bins.shift, bins.half, bins.finite, 0, 0, a.counts, a.status};
    const auto s = static_cast<cudaStream_t>(stream);
    dispatch<__half, __nv_bfloat16>(a.x.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        if (!a.by_channel) return launch_all<T>(a, job, bins, device, s);
        const int64_t size = a.x.n * a.x.channels * a.x.positions;
        if (size == 0) return;
        LAUNCH((count_channels<T>), std::min(ceil_div(size, 256), int64_t{1} << 20), 256, 0, s)(a.x, job);
    });
    check(cudaGetLastError(), "value_histogram");
}

}  // namespace resque::cuda
