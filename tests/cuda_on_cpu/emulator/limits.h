// What the runtime (runtime.cpp) and the launch (emulator.cpp) know of each other.
#pragma once

#include <cstddef>
#include <string>

#include "cuda_runtime.h"

namespace cuda_on_cpu {

// As on compute capability 9.0, 8.0 or 7.5. A block has the first; a kernel that asks for dynamic shared
// memory by cudaFuncSetAttribute gets up to the second; the third is a multiprocessor's.
constexpr std::size_t kSharedDefault = 48 << 10;
constexpr std::size_t kSharedOptIn = (RESQUE_SM == 75 ? 64 : RESQUE_SM == 80 ? 163 : 227) << 10;
constexpr std::size_t kSharedProcessor = (RESQUE_SM == 75 ? 64 : RESQUE_SM == 80 ? 164 : 228) << 10;

// The most shared memory that `kernel` may be launched with: dynamic, and with the static.
struct SharedLimits {
  std::size_t dynamic, all;
};
SharedLimits shared_limits(const void* kernel);

// Leaves `error` for cudaGetLastError, with an explanation if it is a launch failure.
cudaError_t record(cudaError_t error, const std::string& fault = {});

}  // namespace cuda_on_cpu
