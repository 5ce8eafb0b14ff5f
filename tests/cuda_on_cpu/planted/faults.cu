// Faults for the sanitizers. Each launcher has a clean twin: the same kernel without the fault.
#include "cuda/gpu.h"

#include "faults.h"

namespace {

constexpr int kThreads = 64;

template <bool kFault>
__global__ void shared_overrun(int* out) {
  SHARED(int, row, [kThreads]);
  int* words = row;  // indexing the array itself would be UBSan's to see
  words[threadIdx.x + (kFault ? 1 : 0)] = 1;
  __syncthreads();
  out[threadIdx.x] = row[threadIdx.x];
}

template <bool kFault>
__global__ void dynamic_shared_overrun(int* out) {
  DYN_SHARED(int, row);
  row[threadIdx.x + (kFault ? 1 : 0)] = 1;
  __syncthreads();
  out[threadIdx.x] = row[threadIdx.x];
}

template <bool kFault>
__global__ void global_overrun(int* out) {
  out[threadIdx.x + (kFault ? 1 : 0)] = 1;
}

template <bool kFault>
__global__ void stack_overrun(int* out) {
  int local[4] = {1, 2, 3, 4};
  volatile int index = kFault ? 4 : 3;
  out[threadIdx.x] = local[index];
}

template <bool kFault>
__global__ void overflow(int* out) {
  volatile int most = kFault ? 0x7fffffff : 0x7fffffff - kThreads;
  out[threadIdx.x] = most + static_cast<int>(threadIdx.x);
}

template <bool kFault>
__global__ void misaligned(int* out) {
  DYN_SHARED(int, words);
  for (int i = 0; i < 8; ++i) words[i] = i;
  out[threadIdx.x] = reinterpret_cast<const int4*>(words + (kFault ? 1 : 0))->w;
}

// Such a cast saturates on a GPU and wraps on this CPU.
template <bool kFault>
__global__ void cast(int* out) {
  volatile float value = kFault ? 3e9f : 3.0f;
  out[threadIdx.x] = static_cast<int>(value);
}

// All threads of a block add to one shared word, without an atomic if at fault.
template <bool kFault>
__global__ void race_in_block(int* out) {
  SHARED(int, sum);
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  if (kFault)
    sum += 1;
  else
    atomicAdd(&sum, 1);
  __syncthreads();
  out[threadIdx.x] = sum;
}

// Lanes read their neighbour's word: a shuffle in between orders no memory, __syncwarp does.
template <bool kFault>
__global__ void race_in_warp(int* out) {
  SHARED(int, row, [kThreads]);
  row[threadIdx.x] = 1;
  __shfl_sync(0xffffffffu, 1, 0);
  if (!kFault) __syncwarp();
  out[threadIdx.x] = row[threadIdx.x ^ 1];
}

// One thread of each block adds to one global word; more blocks than ThreadSanitizer has contexts.
template <bool kFault>
__global__ void race_between_blocks(int* out) {
  if (threadIdx.x != blockIdx.x) return;
  if (kFault)
    out[0] += 1;
  else
    atomicAdd(out, 1);
}

// The block that counts last reads what the first wrote, which needs a fence before the count.
template <bool kFault>
__global__ void missing_fence(int* out) {
  if (threadIdx.x != 0) return;
  out[1 + blockIdx.x] = 1;
  if (!kFault) __threadfence();
  const int before = atomicAdd(&out[3], 1);
  if (before == 1) out[0] = out[1] + out[2];
}

}  // namespace

#define FAULT(kernel, blocks, shared_bytes)                                  \
  void run_##kernel(bool fault, int* out) {                                  \
    if (fault)                                                               \
      LAUNCH((kernel<true>), blocks, kThreads, shared_bytes, nullptr)(out);  \
    else                                                                     \
      LAUNCH((kernel<false>), blocks, kThreads, shared_bytes, nullptr)(out); \
  }
EACH_FAULT(FAULT)
