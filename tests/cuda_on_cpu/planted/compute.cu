// Kernels with known results, one feature of the emulator each. A launcher returns its error.
#include "cuda/gpu.h"

#include <cstdint>

namespace {

constexpr unsigned kAll = 0xffffffffu;

__device__ unsigned lane() { return threadIdx.x % 32; }

// A sum per block, by shuffles within a warp and shared memory between warps.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    sum_blocks(const float* __restrict__ x, std::int64_t n, double* sums) {
  SHARED(double, warps, [kThreads / 32]);
  double sum = 0;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += step)
    sum += __ldg(x + i);
  for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_down_sync(kAll, sum, delta);
  if (lane() == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kThreads / 32; ++warp) sum += warps[warp];
    sums[blockIdx.x] = sum;
  }
}

// The same in one launch: the block that finishes last adds up all sums.
__global__ void sum_all(const float* x, std::int64_t n, double* sums, unsigned* finished,
                        double* total) {
  SHARED(bool, last);
  DYN_SHARED(double, partial);
  double sum = 0;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += step)
    sum += x[i];
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned t = 1; t < blockDim.x; ++t) sum += partial[t];
    sums[blockIdx.x] = sum;
    __threadfence();
    last = atomicInc(finished, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    sum = 0;
    for (unsigned block = 0; block < gridDim.x; ++block) sum += sums[block];
    *total = sum;
  }
}

// Each thread's number in the grid, at the place that its coordinates give.
__global__ void number_threads(std::int64_t* out) {
  const std::int64_t block =
      (static_cast<std::int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const std::int64_t place = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
  out[place] = place;
}

// Counts by key with one atomic per key and warp; ranks[i]: earlier lanes of the warp with i's key.
__global__ void count_keys(const int* keys, unsigned* counts, int* ranks) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned same = __match_any_sync(kAll, keys[i]);
  ranks[i] = __popc(same & ((1u << lane()) - 1));
  if (ranks[i] == 0) atomicAdd(&counts[keys[i]], __popc(same));
}

// Three interleaved subsets of a warp, each on its own mask, take different numbers of collectives.
__global__ void sum_subsets(const int* x, int* out) {
  const unsigned subset = lane() % 3;
  unsigned mask = 0;
  for (unsigned l = subset; l < 32; l += 3) mask |= 1u << l;
  int sum = x[threadIdx.x];
  for (unsigned round = 0; round <= subset; ++round) {
    sum = __reduce_add_sync(mask, sum);
    __syncwarp(mask);
  }
  if (subset == 1) sum += __shfl_sync(mask, static_cast<int>(threadIdx.x), 31);
  out[threadIdx.x] = sum;
}

template <class T>
__global__ void shuffle(const T* x, int by, int width, T* out) {
  const T mine = x[threadIdx.x];
  T* place = out + 4 * threadIdx.x;
  place[0] = __shfl_sync(kAll, mine, by, width);
  place[1] = __shfl_up_sync(kAll, mine, by, width);
  place[2] = __shfl_down_sync(kAll, mine, by, width);
  place[3] = __shfl_xor_sync(kAll, mine, by, width);
}

__global__ void vote(const int* x, int* out) {
  const int mine = x[threadIdx.x];
  int all_same;
  __match_all_sync(kAll, mine, &all_same);
  const int results[] = {static_cast<int>(__ballot_sync(kAll, mine)),
                         __any_sync(kAll, mine),
                         __all_sync(kAll, mine),
                         all_same,
                         __reduce_min_sync(kAll, mine),
                         __reduce_max_sync(kAll, mine),
                         static_cast<int>(__reduce_xor_sync(kAll, static_cast<unsigned>(mine))),
                         __syncthreads_count(mine),
                         __syncthreads_or(mine),
                         __syncthreads_and(mine)};
  for (int i = 0; i < 10; ++i) out[10 * threadIdx.x + i] = results[i];
}

struct Totals {
  int add, lowest, highest;
  unsigned bits_or, bits_and, bits_xor, wrapped;
  float sum32;
  double sum64;
  unsigned long long wide, wide_max, spun;
};

// Every thread of every block on one set of totals.
__global__ void accumulate(Totals* totals) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&totals->add, i);
  atomicMin(&totals->lowest, -i);
  atomicMax(&totals->highest, i);
  atomicOr(&totals->bits_or, 1u << (i % 32));
  atomicAnd(&totals->bits_and, ~(1u << (i % 16)));
  atomicXor(&totals->bits_xor, static_cast<unsigned>(i));
  atomicInc(&totals->wrapped, 9);
  atomicAdd(&totals->sum32, 0.5f);
  atomicAdd(&totals->sum64, 0.25);
  atomicAdd(&totals->wide, 1ull << 40);
  atomicMax(&totals->wide_max, static_cast<unsigned long long>(i) << 33);
  unsigned long long old = totals->spun, seen;
  while ((seen = atomicCAS(&totals->spun, old, old + 2)) != old) old = seen;
}

// Reads what nobody wrote.
__global__ void read_stale(float* out) {
  SHARED(float, never, [2][3]);
  DYN_SHARED(float, nothing);
  out[0] = never[1][2];
  out[1] = nothing[0];
}

__global__ void widen(const unsigned short* bits, float* from_half, float* from_bfloat16) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  from_half[i] = __half2float(__ushort_as_half(bits[i]));
  from_bfloat16[i] = __bfloat162float(__ushort_as_bfloat16(bits[i]));
}

__global__ void narrow(const float* x, std::int64_t n, unsigned short* half,
                       unsigned short* bfloat16) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  half[i] = __half_as_ushort(__float2half_rn(x[i]));
  bfloat16[i] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
}

int error() { return cudaGetLastError(); }

}  // namespace

#define LAUNCHER extern "C" __attribute__((visibility("default"))) int

LAUNCHER run_sum_blocks(const float* x, std::int64_t n, int blocks, double* sums) {
  LAUNCH((sum_blocks<128>), blocks, 128, 0, nullptr)(x, n, sums);
  return error();
}
LAUNCHER run_sum_all(const float* x, std::int64_t n, int blocks, double* sums, unsigned* finished,
                     double* total) {
  LAUNCH((sum_all), blocks, 64, 64 * sizeof(double), nullptr)(x, n, sums, finished, total);
  return error();
}
LAUNCHER run_number_threads(std::int64_t* out) {
  LAUNCH((number_threads), dim3(3, 2, 5), dim3(4, 7, 3), 0, nullptr)(out);
  return error();
}
LAUNCHER run_count_keys(const int* keys, int blocks, unsigned* counts, int* ranks) {
  LAUNCH((count_keys), blocks, 96, 0, nullptr)(keys, counts, ranks);
  return error();
}
LAUNCHER run_sum_subsets(const int* x, int* out) {
  LAUNCH((sum_subsets), 1, 64, 0, nullptr)(x, out);
  return error();
}
LAUNCHER run_shuffle_float(const float* x, int by, int width, float* out) {
  LAUNCH((shuffle<float>), 1, 32, 0, nullptr)(x, by, width, out);
  return error();
}
LAUNCHER run_shuffle_double(const double* x, int by, int width, double* out) {
  LAUNCH((shuffle<double>), 1, 32, 0, nullptr)(x, by, width, out);
  return error();
}
LAUNCHER run_shuffle_int64(const long long* x, int by, int width, long long* out) {
  LAUNCH((shuffle<long long>), 1, 32, 0, nullptr)(x, by, width, out);
  return error();
}
LAUNCHER run_vote(const int* x, int* out) {
  LAUNCH((vote), 1, 64, 0, nullptr)(x, out);
  return error();
}
LAUNCHER run_accumulate(void* totals) {
  LAUNCH((accumulate), 5, 48, 0, nullptr)(static_cast<Totals*>(totals));
  return error();
}
LAUNCHER run_read_stale(float* out) {
  LAUNCH((read_stale), 1, 1, sizeof(float), nullptr)(out);
  return error();
}
LAUNCHER run_widen(const unsigned short* bits, float* from_half, float* from_bfloat16) {
  LAUNCH((widen), 64, 1024, 0, nullptr)(bits, from_half, from_bfloat16);
  return error();
}
LAUNCHER run_narrow(const float* x, std::int64_t n, unsigned short* half,
                    unsigned short* bfloat16) {
  LAUNCH((narrow), (n + 255) / 256, 256, 0, nullptr)(x, n, half, bfloat16);
  return error();
}
