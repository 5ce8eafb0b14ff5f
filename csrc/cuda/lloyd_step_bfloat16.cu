// lloyd_step on CUDA: lloyd_step_launch.cuh for bfloat16.
#include "cuda/lloyd_step_launch.cuh"

namespace resque::cuda {

template void launch_lloyd<__nv_bfloat16>(const LloydStep&, int, cudaStream_t);

}  // namespace resque::cuda
