// lloyd_step on CUDA: lloyd_step_launch.cuh for float64.
#include "cuda/lloyd_step_launch.cuh"

namespace resque::cuda {

template void launch_lloyd<double>(const LloydStep&, int, cudaStream_t);

}  // namespace resque::cuda
