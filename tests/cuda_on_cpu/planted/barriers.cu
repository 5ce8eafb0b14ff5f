// A kernel that needs each of its barriers, for their removal one by one; with its own main.
#include "cuda/gpu.h"

#include <cstdio>

namespace {

constexpr int kThreads = 64;

// Words change places with the opposite thread, and twice with the neighbouring lane.
__global__ void exchange_words(int* out) {
  SHARED(int, block, [kThreads]);
  SHARED(int, warp, [kThreads]);
  int mine = static_cast<int>(threadIdx.x);
  for (int round = 0; round < 2; ++round) {
    block[threadIdx.x] = mine;
    __syncthreads();  // else a word may be read before it is written
    mine = block[kThreads - 1 - threadIdx.x];
    __syncthreads();  // else the next round may overwrite what is still to be read
    for (int swap = 0; swap < 2; ++swap) {
      warp[threadIdx.x] = mine;
      __syncwarp();
      mine = warp[threadIdx.x ^ 1];
      __syncwarp(0xffffffffu);
    }
  }
  out[blockIdx.x * kThreads + threadIdx.x] = mine;
}

}  // namespace

int main() {
  int out[2 * kThreads];
  LAUNCH((exchange_words), 2, kThreads, 0, nullptr)(out);
  bool right = true;  // every exchange is done an even number of times: a word is back in its place
  for (int i = 0; i < 2 * kThreads; ++i) right &= out[i] == i % kThreads;
  std::printf("%s %s\n", cudaGetErrorName(cudaGetLastError()), right ? "right" : "wrong");
}
