// Launches that CUDA refuses, and kernels that would hang or be undefined on a GPU.
#include "cuda/gpu.h"

#include <cstddef>

namespace {

__global__ void leave_before_barrier() {
  if (threadIdx.x >= 40) return;
  __syncthreads();
}

__global__ void stay_out_of_barrier() {
  if (threadIdx.x < 32) __syncthreads();
  __syncwarp();
}

__global__ void take_different_barriers() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void name_absent_lanes(int* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, out[threadIdx.x], 1);
}

__global__ void leave_out_oneself(int* out) {
  out[threadIdx.x] = __shfl_sync(0x0000ffffu, out[threadIdx.x], 0);
}

__global__ void disagree_on_mask() { __syncwarp(threadIdx.x % 32 < 8 ? 0xffffffffu : 0xffffff00u); }

__global__ void give_up() {
  if (threadIdx.x == 3) __trap();
  __syncthreads();
}

__global__ void take_much_shared(int* out) {
  SHARED(int, much, [8 << 10]);
  much[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = much[threadIdx.x];
}

__global__ void store_one(int* out) { out[threadIdx.x] = 1; }
__global__ void store_two(int* out) { out[threadIdx.x] = 2; }

}  // namespace

#define LAUNCHER extern "C" __attribute__((visibility("default"))) int
#define STUCK(kernel, ...)                            \
  LAUNCHER run_##kernel([[maybe_unused]] int* out) {  \
    LAUNCH((kernel), 2, 64, 0, nullptr)(__VA_ARGS__); \
    return cudaGetLastError();                        \
  }

STUCK(leave_before_barrier)
STUCK(stay_out_of_barrier)
STUCK(take_different_barriers)
STUCK(name_absent_lanes, out)
STUCK(leave_out_oneself, out)
STUCK(disagree_on_mask)
STUCK(give_up)

LAUNCHER run_store(unsigned grid_x, unsigned grid_y, unsigned block_x, unsigned block_z,
                   std::size_t shared_bytes, int* out) {
  LAUNCH((store_one), dim3(grid_x, grid_y), dim3(block_x, 1, block_z), shared_bytes, nullptr)(out);
  return cudaGetLastError();
}

// Returns the error of the request for `allowed` bytes, else that of the launch.
LAUNCHER run_store_with_shared(int allowed, std::size_t shared_bytes, int* out) {
  cudaFuncSetAttribute((store_two), cudaFuncAttributeMaxDynamicSharedMemorySize, allowed);
  if (const cudaError_t error = cudaGetLastError()) return error;
  LAUNCH((store_two), 1, 1, shared_bytes, nullptr)(out);
  return cudaGetLastError();
}

// 32 KiB of static shared memory beside the dynamic.
LAUNCHER run_take_much_shared(std::size_t shared_bytes, int* out) {
  LAUNCH((take_much_shared), 1, 32, shared_bytes, nullptr)(out);
  return cudaGetLastError();
}

LAUNCHER error_text(int error, const char** name, const char** text) {
  *name = cudaGetErrorName(static_cast<cudaError_t>(error));
  *text = cudaGetErrorString(static_cast<cudaError_t>(error));
  return 0;
}
