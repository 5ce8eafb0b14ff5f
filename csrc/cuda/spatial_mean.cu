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

// The sum over a group of `lanes` neighbouring lanes, a power of two, in each of them.
__device__ __forceinline__ double sum_over_lanes(double sum, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    return sum;
}

// positions side by side (NCHW): `lanes` lanes a channel of a sample. A whole warp for one plane of
// 4x4 bfloat16 would leave 30 of its lanes without a load.
template <typename T, int V, typename Mean>
__global__ void __launch_bounds__(kMeanThreads)
    mean_of_planes(const T* x, int64_t n, int64_t channels, int64_t positions, int64_t stride_n,
                   int64_t stride_c, int lanes, Mean* means) {
    const int64_t thread = blockIdx.x * static_cast<int64_t>(kMeanThreads) + threadIdx.x;
    const int64_t plane = thread / lanes, lane = thread % lanes;
    const bool there = plane < n * channels;  // nobody leaves: the warp shuffles together
    double sum = 0;
    if (there) {
        const T* p = x + plane / channels * stride_n + plane % channels * stride_c;
#pragma unroll 4
        for (int64_t i = lane * V; i < positions; i += lanes * V) {
            const Pack<T, V> values = load_pack<T, V>(p + i);
#pragma unroll
            for (int v = 0; v < V; ++v) sum += to_double(values.value[v]);
        }
    }
    sum = sum_over_lanes(sum, lanes);
    if (there && lane == 0) means[plane] = static_cast<Mean>(sum / static_cast<double>(positions));
}

// channels side by side (channels-last, tokens): V channels of a sample a thread. Position p falls to
// lane group p % lanes of the warp, whose 32 / lanes threads read neighbouring packs: 64 bytes at least
// with 8 groups. Without groups, 64 samples of 197 tokens of 768 channels would fill 24 blocks.
template <typename T, int V, typename Mean>
__global__ void __launch_bounds__(kMeanThreads)
    mean_of_vectors(const T* x, int64_t n, int64_t channels, int64_t positions, int64_t stride_n,
                    int64_t stride_p, int lanes, Mean* means) {
    const int64_t packs = ceil_div(channels, V);
    const int64_t warp = (blockIdx.x * static_cast<int64_t>(kMeanThreads) + threadIdx.x) / kWarp;
    const int lane = threadIdx.x % kWarp, width = kWarp / lanes;
    const int64_t item = warp * width + lane % width;
    const bool there = item < n * packs;  // nobody leaves: the warp shuffles together
    const int64_t column = item % packs * V;
    double sum[V] = {};
    if (there) {
        const T* p = x + item / packs * stride_n + column;
#pragma unroll 8
        for (int64_t i = lane / width; i < positions; i += lanes) {
            const Pack<T, V> values = load_pack<T, V>(p + i * stride_p);
#pragma unroll
            for (int v = 0; v < V; ++v) sum[v] += to_double(values.value[v]);
        }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
        for (int step = kWarp / 2; step >= width; step /= 2) {
            sum[v] += __shfl_xor_sync(0xffffffffu, sum[v], step);
        }
    }
    if (!there || lane >= width) return;
#pragma unroll
    for (int v = 0; v < V; ++v) {
        means[item / packs * channels + column + v] =
            static_cast<Mean>(sum[v] / static_cast<double>(positions));
    }
}

// The largest power of two that is at most `count` and at most `most`.
int power_of_two(int64_t count, int most) {
    int lanes = 1;
    while (lanes < most && 2 * lanes <= count) lanes *= 2;
    return lanes;
}

template <typename T, int V, typename Mean>
void launch_mean_of_vectors(const Features& x, Mean* means, cudaStream_t stream) {
    const int lanes = power_of_two(x.positions, 8);
    const int64_t warps = ceil_div(x.n * ceil_div(x.channels, V), kWarp / lanes);
    LAUNCH((mean_of_vectors<T, V, Mean>), ceil_div(warps, kMeanThreads / kWarp), kMeanThreads, 0, stream)(
        static_cast<const T*>(x.data), x.n, x.channels, x.positions, x.stride_n, x.stride_p, lanes, means);
}

template <typename T, int V, typename Mean>
void launch_mean_of_planes(const Features& x, Mean* means, cudaStream_t stream) {
    const int lanes = power_of_two(x.positions / V, kWarp);
    const int64_t threads = x.n * x.channels * lanes;
    LAUNCH((mean_of_planes<T, V, Mean>), ceil_div(threads, kMeanThreads), kMeanThreads, 0, stream)(
        static_cast<const T*>(x.data), x.n, x.channels, x.positions, x.stride_n, x.stride_c, lanes, means);
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
