// What differs between compute capabilities, or has no words in CUDA C++: a tensor core's product, copies
// to shared memory that run on while the thread does (from 8.0 on), reductions of a warp. What is PTX has
// a twin for the emulator, from the same documentation, so that all but the one line of PTX runs there:
// the twin of the product takes its operands from the lanes that PTX says hold them, the twin of the
// copies lets nothing arrive before somebody waits.
#pragma once

#include "cuda/gpu.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace resque::cuda {

// Two neighbours in float16 as the 32 bits of a register.
__device__ __forceinline__ uint32_t bits_of(__half2 pair) {
    uint32_t bits;
    memcpy(&bits, &pair, 4);
    return bits;
}

#ifndef RESQUE_CUDA_ON_CPU

// sum += a b, [16, 8] += [16, 16] [16, 8], products of float16 added in float32. Where lane 4 g + t
// holds them (columns of a and rows of b may be permuted, both alike):
//   a[0], a[1]: rows g, g + 8; columns 2 t, 2 t + 1      a[2], a[3]: the same rows; columns 2 t + 8, 2 t + 9
//   b0: rows 2 t, 2 t + 1; column g                      b1: rows 2 t + 8, 2 t + 9; column g
//   sum[0], sum[1]: row g; columns 2 t, 2 t + 1          sum[2], sum[3]: row g + 8; the same columns
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
#if RESQUE_SM >= 80
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    // Two products of 8 columns, which 9 addends each round no worse than lloyd_step_bounds.cuh allows.
    const auto multiply_add_8 = [&sum](uint32_t upper, uint32_t lower, uint32_t b) {
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};\n"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(upper), "r"(lower), "r"(b));
    };
    multiply_add_8(a[0], a[1], b0);
    multiply_add_8(a[2], a[3], b1);
#endif
}

#else

inline float half_of(uint32_t pair, int which) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> (16 * which))));
}

// How the emulated tensor core adds, as NVIDIA leaves it open. Aligned is how its chips were found to do
// it (M. Fasi et al., "Numerical behavior of NVIDIA tensor cores", 2021), and no finer than any of them:
// every addend is cut to 24 bits from the largest on, the sum is cut again. Nearest rounds the exact sum.
// RESQUE_CUDA_ON_CPU_ADDITION=aligned|nearest
enum class Addition { kAligned, kNearest };
inline const Addition emulated_addition = [] {
    const char* text = getenv("RESQUE_CUDA_ON_CPU_ADDITION");
    return text && strcmp(text, "nearest") == 0 ? Addition::kNearest : Addition::kAligned;
}();

// The power of two that is the unit of the 24 bits of `value`; of zero a unit that cuts nothing.
inline double unit_of(double value) {
    return value == 0 ? 0x1p-149 : ldexp(1.0, std::max(ilogb(value) - 23, -149));
}

inline double cut(double value, double unit) { return trunc(value / unit) * unit; }

// sum + product[0] + ... in float32. Products of float16, and sums of what is left of them, are exact in
// float64.
inline float added(float sum, const double* product, int count) {
    double largest = fabs(static_cast<double>(sum));
    for (int k = 0; k < count; ++k) largest = fmax(largest, fabs(product[k]));
    const bool aligned = emulated_addition == Addition::kAligned && largest < INFINITY;
    const double unit = aligned ? unit_of(largest) : 1;
    double total = aligned ? cut(sum, unit) : sum;
    for (int k = 0; k < count; ++k) total += aligned ? cut(product[k], unit) : product[k];
    return static_cast<float>(aligned && isfinite(total) ? cut(total, unit_of(total)) : total);
}

// Products that are added at once: the paper found 4 before compute capability 8.0, and 8 at 8.0. It is
// older than 9.0, for which all 16 are taken.
constexpr int kAtOnce = RESQUE_SM >= 90 ? 16 : RESQUE_SM >= 80 ? 8 : 4;

inline void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const auto together = [](uint32_t low, uint32_t high) { return uint64_t{high} << 32 | low; };
    double product[4][16];
    for (int q = 0; q < 4; ++q) {  // the lane of a quad
        uint64_t row[2], column[2];
        for (int i = 0; i < 2; ++i) {
            row[i] = __shfl_sync(0xffffffffu, together(a[i], a[i + 2]), 4 * g + q);
            column[i] = __shfl_sync(0xffffffffu, together(b0, b1), 4 * (2 * t + i) + q);
        }
        for (int k = 0; k < 4; ++k) {  // columns 2 q, 2 q + 1, 2 q + 8, 2 q + 9 of a
            for (int i = 0; i < 4; ++i) {
                const float x = half_of(static_cast<uint32_t>(row[i / 2] >> (32 * (k / 2))), k % 2);
                const float y = half_of(static_cast<uint32_t>(column[i % 2] >> (32 * (k / 2))), k % 2);
                product[i][8 * (k / 2) + 2 * q + k % 2] = static_cast<double>(x) * y;
            }
        }
    }
    for (int i = 0; i < 4; ++i) {
        for (int k = 0; k < 16; k += kAtOnce) sum[i] = added(sum[i], &product[i][k], kAtOnce);
    }
}

#endif

// A thread's copies of 16 bytes from global to shared memory, in groups. What it copied is there for
// itself after wait(), for others after a barrier behind that.
#if RESQUE_SM < 80

// Without such copies: a thread's are there as soon as it starts them.
class Copies {
   public:
    __device__ __forceinline__ void start(void* shared, const void* global) {
        *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
    }
    __device__ __forceinline__ void close_group() {}

    template <int kLatest>
    __device__ __forceinline__ void wait() {}
};

#elif !defined(RESQUE_CUDA_ON_CPU)

class Copies {
   public:
    __device__ __forceinline__ void start(void* shared, const void* global) {
        const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(global) : "memory");
    }
    __device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

    // Until no more than the kLatest last groups are on their way.
    template <int kLatest>
    __device__ __forceinline__ void wait() {
        asm volatile("cp.async.wait_group %0;\n" ::"n"(kLatest) : "memory");
    }
};

#else

class Copies {
   public:
    void start(void* shared, const void* global) {
        if (pendings_ == kPending) __trap();
        pending_[pendings_++] = {shared, global, group_};
    }
    void close_group() { ++group_; }

    template <int kLatest>
    void wait() {
        int kept = 0;
        for (int i = 0; i < pendings_; ++i) {
            if (pending_[i].group >= group_ - kLatest) {
                pending_[kept++] = pending_[i];
            } else {
                memcpy(pending_[i].to, pending_[i].from, 16);
            }
        }
        pendings_ = kept;
    }

   private:
    static constexpr int kPending = 64;
    struct Copy {
        void* to;
        const void* from;
        int group;
    };
    Copy pending_[kPending];
    int pendings_ = 0, group_ = 0;
};

#endif

// The greatest of a warp's values, in every lane.
__device__ __forceinline__ unsigned warp_max(unsigned value) {
#if RESQUE_SM >= 80
    return __reduce_max_sync(0xffffffffu, value);
#else
    for (int step = 16; step > 0; step /= 2) value = max(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
#endif
}

}  // namespace resque::cuda
