// spatial_mean for other launchers.
#pragma once

#include "cuda/common.cuh"
#include "resque.h"

namespace resque::cuda {

// The mean over the positions of each sample and channel, to [n, channels], float64 where the features
// are, else float32.
void launch_spatial_mean(const Features& x, void* means, cudaStream_t stream);

}  // namespace resque::cuda
