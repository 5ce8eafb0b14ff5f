// lloyd_step on CUDA: lloyd_step_launch.cuh for float32.
#include "cuda/lloyd_step_launch.cuh"

namespace resque::cuda {

template void launch_lloyd<float>(const LloydStep&, int, cudaStream_t);

}  // namespace resque::cuda
