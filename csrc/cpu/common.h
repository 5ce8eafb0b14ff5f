// What the CPU kernels share: eight-lane vectors, the widening loads, threads, and one function
// compiled for several instruction sets.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "resque.h"

#define RESQUE_INLINE_LAMBDA __attribute__((always_inline))
#define RESQUE_INLINE inline RESQUE_INLINE_LAMBDA

namespace resque::cpu {

// GCC's vector types: the compiler lowers them to whatever the enclosing function may use, one zmm
// with AVX-512, two ymm with AVX2, four xmm without either.
using Double8 = double __attribute__((vector_size(64)));
using Float8 = float __attribute__((vector_size(32)));
using Word8 = uint32_t __attribute__((vector_size(32)));
using Short8 = uint16_t __attribute__((vector_size(16)));

struct Half {
    uint16_t bits;
};
struct BFloat {
    uint16_t bits;
};

template <typename V>
RESQUE_INLINE V load_bits(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

RESQUE_INLINE Double8 load8(const double* p) { return load_bits<Double8>(p); }

RESQUE_INLINE Double8 load8(const float* p) {
    return __builtin_convertvector(load_bits<Float8>(p), Double8);
}

RESQUE_INLINE Double8 load8(const BFloat* p) {
    const Word8 bits = __builtin_convertvector(load_bits<Short8>(p), Word8) << 16;
    return __builtin_convertvector(load_bits<Float8>(&bits), Double8);
}

// float16 in float32's place has its exponent 112 too low, denormals included, so one exact product
// mends all finite values; exponent 31 (infinity, NaN) then reads as 2^16 or more, and gets float32's.
RESQUE_INLINE Double8 load8(const Half* p) {
    const Word8 bits = __builtin_convertvector(load_bits<Short8>(p), Word8);
    const Word8 magnitude = (bits & 0x7fffu) << 13;
    const Float8 scaled = load_bits<Float8>(&magnitude) * 0x1p112f;
    Word8 wide = load_bits<Word8>(&scaled);
    wide |= (Word8)(wide >= 0x47800000u) & 0x7f800000u;
    wide |= (bits & 0x8000u) << 16;
    return __builtin_convertvector(load_bits<Float8>(&wide), Double8);
}

RESQUE_INLINE double load1(const double* p) { return *p; }
RESQUE_INLINE double load1(const float* p) { return *p; }

template <typename T>
RESQUE_INLINE double load1(const T* p) {
    T lanes[8] = {*p};
    return load8(lanes)[0];
}

// Runs task(0) .. task(tasks - 1), each once, on at most `threads` threads. Threads are started and
// joined here: no pool, so nothing that a fork could leave broken. A start costs about 15 us, so a
// thread is worth it from `bytes` of about 1 MB (100 us of reading) on. Tasks write to places of their
// own: which thread runs one never shows in a result.
template <typename Task>
void parallel_for(int64_t tasks, int threads, int64_t bytes, const Task& task) {
    constexpr int64_t kBytesPerThread = int64_t{1} << 20;
    const int64_t useful = std::min<int64_t>({tasks, threads, bytes / kBytesPerThread});
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i);
    };
    std::vector<std::thread> others;
    for (int64_t t = 1; t < useful; ++t) {
        try {
            others.emplace_back(work);
        } catch (const std::system_error&) {
            break;  // the threads there are do it all
        }
    }
    work();
    for (auto& thread : others) thread.join();
}

enum class Isa { baseline, avx2, avx512 };
Isa isa();

// Calls kernel(args...) compiled for the best instruction set of this machine. The kernel is an
// always_inline function object, so that each copy below is compiled whole for its own set while
// everything else in the file stays at the baseline.
#if defined(__x86_64__)
template <typename Kernel, typename... Args>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) void call_avx512(
    Kernel kernel, Args... args) {
    kernel(args...);
}
template <typename Kernel, typename... Args>
__attribute__((target("avx2,fma"))) void call_avx2(Kernel kernel, Args... args) {
    kernel(args...);
}
#endif

template <typename Kernel, typename... Args>
void call_for_isa(Kernel kernel, Args... args) {
#if defined(__x86_64__)
    switch (isa()) {
        case Isa::avx512: return call_avx512(kernel, args...);
        case Isa::avx2: return call_avx2(kernel, args...);
        case Isa::baseline: break;
    }
#endif
    kernel(args...);
}

}  // namespace resque::cpu
