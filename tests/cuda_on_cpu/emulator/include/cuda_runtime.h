// Stands in for CUDA's cuda_runtime.h when g++ compiles the .cu files as ordinary C++.
#pragma once

#define RESQUE_CUDA_ON_CPU 1

// The compute capability: what kernels ask for (gpu.h), and whose limits launches have.
#ifndef RESQUE_SM
#define RESQUE_SM 90
#endif
static_assert(RESQUE_SM == 75 || RESQUE_SM == 80 || RESQUE_SM == 90,
              "the limits of others are not known here");

// __noinline__ stays undefined: libstdc++ itself writes __attribute__((__noinline__)).
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) alignas(bytes)

#include "emulated/vectors.h"

#include "emulated/runtime.h"
#include "emulated/threads.h"

#include "emulated/arithmetic.h"
#include "emulated/atomics.h"
#include "emulated/warp.h"
