// spatial_mean on CUDA: the kernels of spatial_mean.cuh by themselves.
#include "cuda/spatial_mean.cuh"

#include "dispatch.h"
#include "validate.h"

namespace resque::cuda {

void spatial_mean(const SpatialMean& a, int device, void* stream) {
    validate(a);
    const DeviceGuard guard(device);
    dispatch<__half, __nv_bfloat16>(a.x.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using Mean = std::conditional_t<std::is_same_v<T, double>, double, float>;
        launch_spatial_mean<T>(a.x, static_cast<Mean*>(a.means), static_cast<cudaStream_t>(stream));
    });
    check(cudaGetLastError(), "spatial_mean");
}

}  // namespace resque::cuda
