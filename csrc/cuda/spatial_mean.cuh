// The mean over the positions of each sample and channel: [n, channels, positions] -> [n, channels].
//
// Two kernels for the two memory orders. Both add in float64 and read 16 bytes a lane where alignment
// allows: on sm_80 and sm_90 the conversion to float64 runs at 16 lanes a cycle and multiprocessor,
// while memory brings 7 bfloat16 in that time, so the wide sum hides behind the reading.
#pragma once

#include "cuda/common.cuh"

namespace resque::cuda {
namespace {

constexpr int kMeanThreads = 256;

// positions side by side (NCHW): one warp a channel of a sample.
template <typename T, int V, typename Mean>
__global__ void __launch_bounds__(kMeanThreads)
    mean_of_planes(const T* x, int64_t n, int64_t channels, int64_t positions, int64_t stride_n,
                   int64_t stride_c, Mean* means) {
    const int lane = threadIdx.x % kWarp;
    const int64_t plane = blockIdx.x * static_cast<int64_t>(kMeanThreads / kWarp) + threadIdx.x / kWarp;
    if (plane >= n * channels) return;  // the whole warp
    const T* p = x + plane / channels * stride_n + plane % channels * stride_c;
    double sum = 0;
#pragma unroll 4
    for (int64_t i = lane * V; i < positions; i += kWarp * V) {
        const Pack<T, V> values = load_pack<T, V>(p + i);
#pragma unroll
        for (int v = 0; v < V; ++v) sum += to_double(values.value[v]);
    }
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) means[plane] = static_cast<Mean>(sum / static_cast<double>(positions));
}

// channels side by side (channels-last, tokens): one thread V channels of a sample.
template <typename T, int V, typename Mean>
__global__ void __launch_bounds__(kMeanThreads)
    mean_of_vectors(const T* x, int64_t n, int64_t channels, int64_t positions, int64_t stride_n,
                    int64_t stride_p, Mean* means) {
    const int64_t packs = ceil_div(channels, V);
    const int64_t thread = blockIdx.x * static_cast<int64_t>(kMeanThreads) + threadIdx.x;
    if (thread >= n * packs) return;
    const int64_t column = thread % packs * V;
    const T* p = x + thread / packs * stride_n + column;
    double sum[V] = {};
#pragma unroll 8
    for (int64_t i = 0; i < positions; ++i) {
        const Pack<T, V> values = load_pack<T, V>(p + i * stride_p);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += to_double(values.value[v]);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
        means[thread / packs * channels + column + v] =
            static_cast<Mean>(sum[v] / static_cast<double>(positions));
    }
}

// Calls launch with 16-byte packs where every address allows them, else with single values.
template <typename T, typename Mean>
void launch_spatial_mean(const Features& x, Mean* means, cudaStream_t stream) {
    if (x.n == 0 || x.channels == 0) return;
    constexpr int kPack = 16 / sizeof(T);
    const T* data = static_cast<const T*>(x.data);
    const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && x.stride_n % kPack == 0;
    if (x.stride_c == 1) {
        const bool wide = aligned && x.stride_p % kPack == 0 && x.channels % kPack == 0;
        const int64_t threads = x.n * ceil_div(x.channels, wide ? kPack : 1);
        const int64_t blocks = ceil_div(threads, kMeanThreads);
        if (wide) {
            LAUNCH((mean_of_vectors<T, kPack, Mean>), blocks, kMeanThreads, 0, stream)(
                data, x.n, x.channels, x.positions, x.stride_n, x.stride_p, means);
        } else {
            LAUNCH((mean_of_vectors<T, 1, Mean>), blocks, kMeanThreads, 0, stream)(
                data, x.n, x.channels, x.positions, x.stride_n, x.stride_p, means);
        }
        return;
    }
    const bool wide = aligned && x.stride_c % kPack == 0 && x.positions % kPack == 0;
    const int64_t blocks = ceil_div(x.n * x.channels, kMeanThreads / kWarp);
    if (wide) {
        LAUNCH((mean_of_planes<T, kPack, Mean>), blocks, kMeanThreads, 0, stream)(
            data, x.n, x.channels, x.positions, x.stride_n, x.stride_c, means);
    } else {
        LAUNCH((mean_of_planes<T, 1, Mean>), blocks, kMeanThreads, 0, stream)(
            data, x.n, x.channels, x.positions, x.stride_n, x.stride_c, means);
    }
}

}  // namespace
}  // namespace resque::cuda
