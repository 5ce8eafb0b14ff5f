// What the runtime (runtime.cpp) and the launch (emulator.cpp) know of each other.
#pragma once

#include <cstddef>
#include <string>

#include "cuda_runtime.h"

namespace cuda_on_cpu {

// As on compute capability 9.0. A block has the first; a kernel that asks for more dynamic shared
// memory by cudaFuncSetAttribute gets up to the second.
constexpr std::size_t kSharedDefault = 48 << 10, kSharedOptIn = 227 << 10;

// The most dynamic shared memory that `kernel` may be launched with.
std::size_t dynamic_shared_limit(const void* kernel);

// Leaves `error` for cudaGetLastError, with an explanation if it is a launch failure.
cudaError_t record(cudaError_t error, const std::string& fault = {});

}  // namespace cuda_on_cpu
