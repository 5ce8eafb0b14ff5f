// row_distances on CUDA: row_distances_short.cuh for bfloat16.
#include "cuda/row_distances_short.cuh"

namespace resque::cuda {

template bool launch_short(const Job<__nv_bfloat16>&, int64_t, cudaStream_t);

}  // namespace resque::cuda
