// The only file that sees pybind11: pointers in, no logic, the GIL released.
#include <pybind11/pybind11.h>

#include "resque.h"

namespace py = pybind11;
using namespace resque;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Features features(uintptr_t data, int dtype, int64_t n, int64_t channels, int64_t positions,
                  int64_t stride_n, int64_t stride_c, int64_t stride_p) {
    return {pointer<const void>(data), static_cast<DType>(dtype), n, channels, positions, stride_n,
            stride_c, stride_p};
}

ClassOrder class_order(uintptr_t labels, bool labels_int64, int64_t label_stride, int64_t n,
                       int64_t classes, int64_t blocks, uintptr_t seen, uintptr_t order,
                       uintptr_t offsets, uintptr_t status, uintptr_t workspace) {
    return {pointer<const void>(labels), labels_int64, label_stride, n, classes, blocks,
            pointer<const int64_t>(seen), pointer<int32_t>(order), pointer<int64_t>(offsets),
            pointer<int64_t>(status), pointer<void>(workspace)};
}

ClassMoments class_moments(const Features& x, uintptr_t order, uintptr_t offsets, int64_t groups,
                           bool squares, bool skip_nonfinite, uintptr_t counts, uintptr_t sums,
                           uintptr_t sumsq, uintptr_t status, uintptr_t workspace) {
    return {x, pointer<const int32_t>(order), pointer<const int64_t>(offsets), groups, squares,
            skip_nonfinite, pointer<int64_t>(counts), pointer<double>(sums), pointer<double>(sumsq),
            pointer<int64_t>(status), pointer<void>(workspace)};
}

SpatialMean spatial_mean(const Features& x, uintptr_t means) { return {x, pointer<void>(means)}; }

#ifdef RESQUE_WITH_CUDA
template <typename Args, void (*launcher)(const Args&, int, void*)>
void on_stream(const Args& args, int device, uintptr_t stream) {
    launcher(args, device, pointer<void>(stream));
}
#endif

py::dict build_info() {
    py::dict info;
    info["source_digest"] = RESQUE_SOURCE_DIGEST;
    info["compiler"] = __VERSION__;
    info["cxx_flags"] = RESQUE_CXX_FLAGS;
    info["instruction_set"] = cpu::instruction_set();
    info["cuda"] = py::none();
#ifdef RESQUE_WITH_CUDA
    py::dict built;
    built["toolkit"] = cuda::toolkit();
    built["architectures"] = py::str(RESQUE_CUDA_ARCHS).attr("split")(",");
    info["cuda"] = built;
#endif
    return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    const auto unlocked = py::call_guard<py::gil_scoped_release>();

    py::class_<Features>(m, "Features", py::module_local()).def(py::init(&features));
    py::class_<ClassOrder>(m, "ClassOrder", py::module_local()).def(py::init(&class_order));
    py::class_<ClassMoments>(m, "ClassMoments", py::module_local()).def(py::init(&class_moments));
    py::class_<SpatialMean>(m, "SpatialMean", py::module_local()).def(py::init(&spatial_mean));

    m.def("build_info", &build_info);

    auto cpu = m.def_submodule("cpu");
    cpu.def("class_order_workspace", &cpu::class_order_workspace);
    cpu.def("class_order", &cpu::class_order, unlocked);
    cpu.def("class_moments_workspace", &cpu::class_moments_workspace);
    cpu.def("class_moments", &cpu::class_moments, unlocked);
    cpu.def("spatial_mean", &cpu::spatial_mean, unlocked);

#ifdef RESQUE_WITH_CUDA
    auto cuda = m.def_submodule("cuda");
    cuda.def("class_order_workspace", &cuda::class_order_workspace);
    cuda.def("class_order", &on_stream<ClassOrder, cuda::class_order>, unlocked);
    cuda.def("class_moments_workspace", &cuda::class_moments_workspace);
    cuda.def("class_moments", &on_stream<ClassMoments, cuda::class_moments>, unlocked);
    cuda.def("spatial_mean", &on_stream<SpatialMean, cuda::spatial_mean>, unlocked);
#endif
}
