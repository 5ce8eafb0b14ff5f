// row_distances on CUDA: row_distances_short.cuh for float32.
#include "cuda/row_distances_short.cuh"

namespace resque::cuda {

template bool launch_short(const Job<float>&, int64_t, cudaStream_t);

}  // namespace resque::cuda
