// Threads of a block, their barriers and shared memory: the interface between kernels, compiled
// with whatever sanitizer is asked for, and emulator.cpp, compiled without any.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vectors.h"

// Set at each switch to the values of the thread that runs.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_cpu {

// Where an operation stands in a kernel. As a default argument it takes the place of the call.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// Runs `thread(arguments)` once for every thread of the grid, or records why it cannot.
void launch(const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
            void (*thread)(void*), void* arguments);

// Waits for all threads of the block; returns how many of them came with `predicate`.
int barrier(const char* operation, bool predicate, Site site);

// Waits for the lanes in `mask`; returns the 32 values they came with, all bits set for the lanes
// not in `mask`, valid until the lane's next collective. Only if `orders_memory` are the lanes'
// earlier reads and writes ordered against their later ones, as CUDA promises for __syncwarp alone.
const std::uint64_t* exchange(const char* operation, unsigned mask, std::uint64_t value, Site site,
                              bool orders_memory = false);

// Lane of the running thread in its warp.
unsigned lane();

// The running block's memory for one SHARED declaration, which `key` identifies.
void* shared_memory(const void* key, std::size_t bytes);
void* dynamic_shared_memory();

[[noreturn]] void trap(Site site);

// For ThreadSanitizer: what a thread did before a fence is seen by whoever does an atomic after it.
extern bool fenced;
void fence();
void see_fences();

template <class... P>
struct Launch {
  void (*kernel)(P...);
  dim3 grid, block;
  std::size_t shared_bytes;

  void operator()(P... arguments) const {
    auto thread = [&] { kernel(arguments...); };
    launch(
        reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
        [](void* self) { (*static_cast<decltype(thread)*>(self))(); }, &thread);
  }
};

template <class... P>
Launch<P...> prepare(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes,
                     struct CUstream_st*) {
  return {kernel, grid, block, shared_bytes};
}

}  // namespace cuda_on_cpu

#define LAUNCH(kernel, grid, block, shared_bytes, stream) \
  cuda_on_cpu::prepare(kernel, grid, block, shared_bytes, stream)

// The static gives every declaration in every template instance an address of its own.
#define SHARED(type, name, ...)         \
  static const char name##_key = 0;     \
  using name##_type = type __VA_ARGS__; \
  name##_type& name =                   \
      *static_cast<name##_type*>(cuda_on_cpu::shared_memory(&name##_key, sizeof(name##_type)))

#define DYN_SHARED(type, name) \
  type* const name = static_cast<type*>(cuda_on_cpu::dynamic_shared_memory())

inline void __syncthreads(cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  cuda_on_cpu::barrier(__func__, false, site);
}
inline int __syncthreads_count(int predicate, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  return cuda_on_cpu::barrier(__func__, predicate != 0, site);
}
inline int __syncthreads_or(int predicate, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  return cuda_on_cpu::barrier(__func__, predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  return cuda_on_cpu::barrier(__func__, predicate == 0, site) == 0;
}
inline void __threadfence() { cuda_on_cpu::fence(); }
inline void __threadfence_block() { cuda_on_cpu::fence(); }
inline void __threadfence_system() { cuda_on_cpu::fence(); }
inline void __nanosleep(unsigned) {}
inline void __trap(cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) { cuda_on_cpu::trap(site); }
