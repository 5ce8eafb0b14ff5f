// What the CUDA kernels share: wide loads, the search for a row's group, faults of a row, and the
// launcher's contract.
#pragma once

#include "cuda/gpu.h"

#include <cstdint>
#include <stdexcept>
#include <string>

#include "resque.h"

namespace resque::cuda {

constexpr int kWarp = 32;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ __forceinline__ double to_double(double x) { return x; }
__device__ __forceinline__ double to_double(float x) { return static_cast<double>(x); }
__device__ __forceinline__ double to_double(__half x) { return __half2float(x); }
__device__ __forceinline__ double to_double(__nv_bfloat16 x) { return __bfloat162float(x); }

// N values of T that load as one access of N * sizeof(T) bytes, at most 16.
template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
    T value[N];
};

template <typename T, int N>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
    return *reinterpret_cast<const Pack<T, N>*>(p);
}

// NaN and infinity have every exponent bit set.
__device__ __forceinline__ bool is_finite(double x) {
    constexpr unsigned long long kExponent = 0x7ffull << 52;
    return (static_cast<unsigned long long>(__double_as_longlong(x)) & kExponent) != kExponent;
}

// The group g with offsets[g] <= i < offsets[g + 1]; i lies in some group.
__device__ __forceinline__ int64_t find_group(const int64_t* offsets, int64_t groups, int64_t i) {
    int64_t low = 0, high = groups;  // offsets[low] <= i < offsets[high]
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (offsets[middle] <= i ? low : high) = middle;
    }
    return low;
}

__device__ __forceinline__ void atomic_max(int64_t* address, int64_t value) {
    atomicMax(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value));
}

// What stood there before.
__device__ __forceinline__ int64_t atomic_add(int64_t* address, int64_t value) {
    return static_cast<int64_t>(
        atomicAdd(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value)));
}

// Says in `status` what of row `row` of [n, width], at x, is not finite; whether anything is. The whole
// warp calls.
template <typename T>
__device__ bool report_nonfinite(const T* x, int64_t row, int64_t n, int64_t width, int64_t* status) {
    const int lane = threadIdx.x % kWarp;
    int count = 0;
    for (int64_t c = lane; c < width; c += kWarp) {
        if (is_finite(to_double(x[c]))) continue;
        // this lane's first is its lowest column
        if (count == 0) atomic_max(&status[kNonfiniteFromEnd], n * width - (row * width + c));
        ++count;
    }
    for (int step = kWarp / 2; step > 0; step /= 2) count += __shfl_xor_sync(0xffffffffu, count, step);
    if (lane == 0 && count > 0) {
        atomic_add(&status[kNonfiniteCount], count);
        atomic_add(&status[kNonfiniteRows], 1);
    }
    return count > 0;
}

inline void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(error) + " (" +
                                 cudaGetErrorString(error) + ")");
    }
}

// Lets `kernel` ask for `bytes` of dynamic shared memory; without this it gets 48 KB at most.
template <typename Kernel>
void allow_shared(Kernel* kernel, int64_t bytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "cudaFuncSetAttribute");
}

inline int device_attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
}

// Bytes of shared memory that a block may ask for: 64 KB on compute capability 7.5, 99 to 227 KB later.
inline int64_t most_shared(int device) {
    return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

// Makes `device` current and gives the caller's back on the way out, also when something throws.
class DeviceGuard {
   public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&previous_), "cudaGetDevice");
        if (device != previous_) check(cudaSetDevice(device), "cudaSetDevice");
        changed_ = device != previous_;
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

   private:
    int previous_ = 0;
    bool changed_ = false;
};

}  // namespace resque::cuda
