// class_moments for other launchers: with the squared distances from a centre of each group in place of
// the squares.
#pragma once

#include "cuda/common.cuh"
#include "resque.h"

namespace resque::cuda {

// How many numbers there are in `spreads`.
int64_t spread_parts(const Features& x);

// class_moments without squares, of one position, every row in a group. The sum of all `spreads` is that
// of the rows' squared distances from their groups' centers, [groups, channels].
void class_spreads(const ClassMoments& args, const double* centers, double* spreads, cudaStream_t stream);

}  // namespace resque::cuda
