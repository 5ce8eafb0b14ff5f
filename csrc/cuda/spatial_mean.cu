// spatial_mean on CUDA: the mean over the positions of each sample and channel: [n, channels, positions] -> [n, channels].
//
// Two kernels for the two memory orders. Both add in float64 and read 16 bytes a lane where alignment
// allows: on sm_80 and sm_90 the conversion to float64 runs at 16 lanes a cycle and multiprocessor,
// while memory brings 7 bfloat16 in that time, so the wide sum hides behind the reading.
//
// How many lanes share a mean is a function of the number of positions alone, so that a sample's mean
// is the same in a batch of any size: the partial sums of the lanes are then added by shuffles, in an
// order that is fixed too.
#include "cuda/spatial_mean.cuh"

#include "dispatch.h"
#include "validate.h"

namespace resque::cuda {
namespace {

constexpr int kMeanThreads = 256;

// Of which of N sums a lane has the total: `count` of them from `first` on, at sum[0], sum[1] ...; where
// several lanes have the same, the one that `writes`.
struct Kept {
    int first = 0, count;
    bool writes = true;
};

// Adds N sums over the lanes whose numbers differ in the bits `most`, most / 2 ... `least`, in this order.
// As long as a lane has several sums it gives half of them away for the other lane's share of the rest, so
// that few are added twice, and what follows is done by all lanes, each for its own. The whole warp calls.
template <int N>
__device__ __forceinline__ Kept add_lanes(double (&sum)[N], int most, int least) {
    const int lane = threadIdx.x % kWarp;
    Kept kept;
    kept.count = N;
    int step = most;
#pragma unroll
    for (int half = N / 2; half > 0; half /= 2) {
        if (step < least) continue;
        const bool upper = lane & step;
#pragma unroll
        for (int v = 0; v < half; ++v) {
            const double mine = upper ? sum[v + half] : sum[v], theirs = upper ? sum[v] : sum[v + half];
            sum[v] = mine + __shfl_xor_sync(0xffffffffu, theirs, step);
        }
        kept.first += upper ? half : 0;
        kept.count = half;
        step /= 2;
    }
    for (; step >= least; step /= 2) {
        sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], step);
        kept.writes = kept.writes && !(lane & step);
    }
    return kept;
}

constexpr int kInFlight = 4;  // loads of a thread

// positions side by side (NCHW): 2^bits lanes a plane, a channel of a sample, and four planes a lane: one
// is but a load of 512 bytes for the warp where it is 16x16 bfloat16. A whole warp for one plane of 4x4
// bfloat16 would leave 30 of its lanes without a load. gridDim (planes, samples to begin at).
template <typename T, int V, typename Mean>
__global__ void __launch_bounds__(kMeanThreads)
    mean_of_planes(const T* x, int64_t n, int64_t planes, int64_t positions, int64_t stride_n,
                   int64_t stride_c, int bits, Mean* means) {
    const int lanes = 1 << bits, width = kWarp >> bits;
    const int in_warp = threadIdx.x % kWarp, lane = in_warp & (lanes - 1);
    const int64_t warp = (blockIdx.x * static_cast<int64_t>(kMeanThreads) + threadIdx.x) / kWarp;
    const int64_t first = warp * kInFlight * width + (in_warp >> bits);  // then every width-th
    const int64_t step = width * stride_c;
    for (int64_t sample = blockIdx.y; sample < n; sample += gridDim.y) {
        const T* const start = x + sample * stride_n + (first < planes ? first : 0) * stride_c;
        const T* from[kInFlight];
#pragma unroll
        for (int q = 0; q < kInFlight; ++q) {  // past the end: a plane that is not written
            from[q] = start + (first + q * width < planes ? q * step : 0);
        }
        double sum[kInFlight] = {};
#pragma unroll 1
        for (int64_t i = lane * V; i < positions; i += lanes * V) {
            Pack<T, V> values[kInFlight];
#pragma unroll
            for (int q = 0; q < kInFlight; ++q) values[q] = load_pack<T, V>(from[q] + i);
#pragma unroll
            for (int q = 0; q < kInFlight; ++q) {
#pragma unroll
                for (int v = 0; v < V; ++v) sum[q] += to_double(values[q].value[v]);
            }
        }
        const Kept kept = add_lanes(sum, lanes / 2, 1);
#pragma unroll
        for (int q = 0; q < kInFlight; ++q) {
            const int64_t plane = first + (kept.first + q) * width;
            if (q == kept.count) break;
            if (!kept.writes || plane >= planes) continue;
            means[sample * planes + plane] = static_cast<Mean>(sum[q] / static_cast<double>(positions));
        }
    }
}

// channels side by side (channels-last, tokens): V channels of a sample a thread. Position p falls to
// lane group p % 2^bits of the warp, whose 32 / 2^bits threads read neighbouring packs: 64 bytes at least
// with 8 groups. Without groups, 64 samples of 197 tokens of 768 channels would fill 24 blocks.
template <typename T, int V, typename Mean>
__global__ void __launch_bounds__(kMeanThreads)
    mean_of_vectors(const T* x, int64_t n, int64_t channels, int64_t positions, int64_t stride_n,
                    int64_t stride_p, int bits, Mean* means) {
    const int64_t packs = ceil_div(channels, V), items = n * packs;
    const int64_t warp = (blockIdx.x * static_cast<int64_t>(kMeanThreads) + threadIdx.x) / kWarp;
    const int lane = threadIdx.x % kWarp, lanes = 1 << bits, width = kWarp >> bits;
    const int64_t item = warp * width + (lane & (width - 1));
    const int64_t here = min(item, items - 1);  // past the end: what is not written
    const int64_t sample = items >> 32 ? here / packs : static_cast<uint32_t>(here) / static_cast<uint32_t>(packs);
    const int64_t column = (here - sample * packs) * V;
    const T* from = x + sample * stride_n + column;
    double sum[V] = {};
    for (int64_t i = lane >> (5 - bits); i < positions; i += kInFlight * lanes) {
        Pack<T, V> values[kInFlight];
#pragma unroll
        for (int q = 0; q < kInFlight; ++q) {  // past the end: a position that is not added
            values[q] = load_pack<T, V>(from + min(i + q * lanes, positions - 1) * stride_p);
        }
#pragma unroll
        for (int q = 0; q < kInFlight; ++q) {
            if (i + q * lanes >= positions) continue;
#pragma unroll
            for (int v = 0; v < V; ++v) sum[v] += to_double(values[q].value[v]);
        }
    }
    const Kept kept = add_lanes(sum, kWarp / 2, width);
    Mean* out = means + sample * channels + column + kept.first;
#pragma unroll
    for (int v = 0; v < V; ++v) {
        if (v == kept.count) break;
        if (!kept.writes || item >= items) continue;
        out[v] = static_cast<Mean>(sum[v] / static_cast<double>(positions));
    }
}

// The largest n, `most` at most, with 2^n at most `count`, or 0.
int whole_bits(int64_t count, int most) {
    int bits = 0;
    while (bits < most && int64_t{2} << bits <= count) ++bits;
    return bits;
}

template <typename T, int V, typename Mean>
void launch_mean_of_vectors(const Features& x, Mean* means, cudaStream_t stream) {
    const int bits = whole_bits(x.positions, 3);
    const int64_t warps = ceil_div(x.n * ceil_div(x.channels, V), kWarp >> bits);
    LAUNCH((mean_of_vectors<T, V, Mean>), ceil_div(warps, kMeanThreads / kWarp), kMeanThreads, 0, stream)(
        static_cast<const T*>(x.data), x.n, x.channels, x.positions, x.stride_n, x.stride_p, bits, means);
}

template <typename T, int V, typename Mean>
void launch_mean_of_planes(const Features& x, Mean* means, cudaStream_t stream) {
    const int bits = whole_bits(x.positions / V, 5);
    const bool even = x.stride_n == x.channels * x.stride_c;  // then all planes are one sample's
    const int64_t n = even ? 1 : x.n, planes = even ? x.n * x.channels : x.channels;
    const int64_t warps = ceil_div(planes, kInFlight * (kWarp >> bits));
    const dim3 grid(ceil_div(warps, kMeanThreads / kWarp), min(n, int64_t{65535}));
    LAUNCH((mean_of_planes<T, V, Mean>), grid, kMeanThreads, 0, stream)(
        static_cast<const T*>(x.data), n, planes, x.positions, x.stride_n, x.stride_c, bits, means);
}

// Launches with 16-byte packs where every address allows them, else with single values.
template <typename T, typename Mean>
void launch_means(const Features& x, Mean* means, cudaStream_t stream) {
    if (x.n == 0 || x.channels == 0) return;
    constexpr int kPack = 16 / sizeof(T);
    const bool vectors = x.stride_c == 1;  // with one position nothing else is possible
    const bool aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride_n % kPack == 0;
    const bool wide = aligned && (vectors ? x.stride_p % kPack == 0 && x.channels % kPack == 0
                                          : x.stride_c % kPack == 0 && x.positions % kPack == 0);
    if (vectors) {
        wide ? launch_mean_of_vectors<T, kPack>(x, means, stream) : launch_mean_of_vectors<T, 1>(x, means, stream);
    } else {
        wide ? launch_mean_of_planes<T, kPack>(x, means, stream) : launch_mean_of_planes<T, 1>(x, means, stream);
    }
}

}  // namespace

void launch_spatial_mean(const Features& x, void* means, cudaStream_t stream) {
    dispatch<__half, __nv_bfloat16>(x.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using Mean = std::conditional_t<std::is_same_v<T, double>, double, float>;
        launch_means<T>(x, static_cast<Mean*>(means), stream);
    });
}

void spatial_mean(const SpatialMean& a, int device, void* stream) {
    validate(a);
    const DeviceGuard guard(device);
    launch_spatial_mean(a.x, a.means, static_cast<cudaStream_t>(stream));
    check(cudaGetLastError(), "spatial_mean");
}

}  // namespace resque::cuda
