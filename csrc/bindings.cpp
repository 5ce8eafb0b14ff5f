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

PairCounts pair_counts(uintptr_t labels_a, bool int64_a, int64_t stride_a, uintptr_t labels_b,
                       bool int64_b, int64_t stride_b, int64_t n, int64_t count_a, int64_t count_b,
                       uintptr_t table, uintptr_t status_a, uintptr_t status_b, uintptr_t workspace) {
    return {pointer<const void>(labels_a), pointer<const void>(labels_b), int64_a, int64_b, stride_a,
            stride_b, n, count_a, count_b, pointer<int64_t>(table), pointer<int64_t>(status_a),
            pointer<int64_t>(status_b), pointer<void>(workspace)};
}

LloydStep lloyd_step(const Features& x, uintptr_t centers, int64_t k, uintptr_t labels,
                     uintptr_t distances, uintptr_t inertia, uintptr_t sums, uintptr_t counts,
                     uintptr_t rechecked, uintptr_t status, uintptr_t workspace) {
    return {x, pointer<const double>(centers), k, pointer<int64_t>(labels),
            pointer<double>(distances), pointer<double>(inertia), pointer<double>(sums),
            pointer<int64_t>(counts), pointer<int64_t>(rechecked), pointer<int64_t>(status),
            pointer<void>(workspace)};
}

SpatialMean spatial_mean(const Features& x, uintptr_t means) { return {x, pointer<void>(means)}; }

RowDistances row_distances(const Features& x_old, const Features& x_new, uintptr_t bins,
                           int64_t bin_counts, bool shared, bool skip_nonfinite, uintptr_t sums,
                           uintptr_t rows, uintptr_t counts, uintptr_t float64_edges,
                           uintptr_t status_old, uintptr_t status_new, uintptr_t left_out,
                           uintptr_t workspace) {
    return {x_old, x_new, pointer<const int32_t>(bins), bin_counts, shared, skip_nonfinite,
            pointer<double>(sums), pointer<double>(rows), pointer<int32_t>(counts),
            pointer<int64_t>(float64_edges), pointer<int64_t>(status_old),
            pointer<int64_t>(status_new), pointer<int64_t>(left_out), pointer<void>(workspace)};
}

ValueHistogram value_histogram(const Features& x, bool by_channel, int64_t bits, uintptr_t counts,
                               uintptr_t status, uintptr_t workspace) {
    return {x, by_channel, bits, pointer<int64_t>(counts), pointer<int64_t>(status),
            pointer<void>(workspace)};
}

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
    py::class_<PairCounts>(m, "PairCounts", py::module_local()).def(py::init(&pair_counts));
    py::class_<LloydStep>(m, "LloydStep", py::module_local()).def(py::init(&lloyd_step));
    py::class_<SpatialMean>(m, "SpatialMean", py::module_local()).def(py::init(&spatial_mean));
    py::class_<RowDistances>(m, "RowDistances", py::module_local()).def(py::init(&row_distances));
    py::class_<ValueHistogram>(m, "ValueHistogram", py::module_local()).def(py::init(&value_histogram));

    m.def("build_info", &build_info);
    m.def("choose_instruction_set",
          [](const std::string& name) { cpu::choose_instruction_set(name.c_str()); });

    auto cpu = m.def_submodule("cpu");
    cpu.def("class_order_workspace", &cpu::class_order_workspace);
    cpu.def("class_order", &cpu::class_order, unlocked);
    cpu.def("class_moments_workspace", &cpu::class_moments_workspace);
    cpu.def("class_moments", &cpu::class_moments, unlocked);
    cpu.def("pair_counts_workspace", &cpu::pair_counts_workspace);
    cpu.def("pair_counts", &cpu::pair_counts, unlocked);
    cpu.def("lloyd_step_workspace", &cpu::lloyd_step_workspace);
    cpu.def("lloyd_step", &cpu::lloyd_step, unlocked);
    cpu.def("spatial_mean", &cpu::spatial_mean, unlocked);
    cpu.def("row_distances_workspace", &cpu::row_distances_workspace);
    cpu.def("row_distances", &cpu::row_distances, unlocked);
    cpu.def("value_histogram_workspace", &cpu::value_histogram_workspace);
    cpu.def("value_histogram", &cpu::value_histogram, unlocked);

#ifdef RESQUE_WITH_CUDA
    auto cuda = m.def_submodule("cuda");
    cuda.def("class_order_workspace", &cuda::class_order_workspace);
    cuda.def("class_order", &on_stream<ClassOrder, cuda::class_order>, unlocked);
    cuda.def("class_moments_workspace", &cuda::class_moments_workspace);
    cuda.def("class_moments", &on_stream<ClassMoments, cuda::class_moments>, unlocked);
    cuda.def("pair_counts_workspace", &cuda::pair_counts_workspace);
    cuda.def("pair_counts", &on_stream<PairCounts, cuda::pair_counts>, unlocked);
    cuda.def("spatial_mean", &on_stream<SpatialMean, cuda::spatial_mean>, unlocked);
    cuda.def("lloyd_step_workspace", &cuda::lloyd_step_workspace);
    cuda.def("lloyd_step", &on_stream<LloydStep, cuda::lloyd_step>, unlocked);
    cuda.def("row_distances_workspace", &cuda::row_distances_workspace);
    cuda.def("row_distances", &on_stream<RowDistances, cuda::row_distances>, unlocked);
    cuda.def("value_histogram_workspace", &cuda::value_histogram_workspace);
    cuda.def("value_histogram", &on_stream<ValueHistogram, cuda::value_histogram>, unlocked);
#endif
}
