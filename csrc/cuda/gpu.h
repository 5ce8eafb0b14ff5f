// The first include of every .cu file. Kernels are written once for two compilers: nvcc, and g++
// with the emulator of tests/cuda_on_cpu, whose cuda_runtime.h brings its own form of the macros
// below.
//
//   LAUNCH((kernel<A, B>), grid, block, shared_bytes, stream)(arguments...);
//       the kernel always in parentheses, so that the commas of its template arguments stay inside
//   SHARED(float, tile, [8][K]);   __shared__ float tile[8][K];   an array of exactly this size
//   SHARED(int, flag);             __shared__ int flag;
//   DYN_SHARED(float4, sums);      float4* sums, at the start of the launch's dynamic shared memory
//
// A type that contains a comma needs an alias before SHARED or DYN_SHARED.
//
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// RESQUE_SM is the compute capability that device code is compiled for, 75 for 7.5. The emulator's is 90
// unless the build sets it, so that the code for older GPUs runs there too. Device code alone asks.
#ifndef RESQUE_CUDA_ON_CPU

#ifdef __CUDA_ARCH__
#define RESQUE_SM (__CUDA_ARCH__ / 10)
#else
#define RESQUE_SM 90  // the host's pass, which only parses device code
#endif

#define LAUNCH(kernel, grid, block, shared_bytes, stream) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>

#define SHARED(type, name, ...) __shared__ type name __VA_ARGS__

// Bytes under every type: template instances of one kernel may not redeclare one extern array with
// different types. 16 is the widest vector load.
#define DYN_SHARED(type, name)                                  \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  type* const name = reinterpret_cast<type*>(name##_bytes)

#endif
