// The only file that sees Python: tensors in, no logic, the GIL released.
//
// A tensor comes as itself, and its address is taken here: as an argument of the call it lives until the
// launch has returned, whatever Python or its compilers do with the names that it had.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "cpu/interrupt.h"
#include "resque.h"

namespace py = pybind11;
using namespace resque;

namespace {

// Raised where elements lie nowhere: of meta, fake and zero tensors, and of those that only stand for
// others, such as those that vmap and grad hand out.
[[noreturn]] void refuse(py::handle tensor) {
    throw py::type_error("tensors: expected memory that a kernel can read and write, found a " +
                         std::string(py::str(py::type::handle_of(tensor).attr("__name__"))) +
                         " without any (meta, fake, or of a torch.func transform)");
}

void* address(py::handle tensor) {
    static PyObject* const kDataPtr = PyUnicode_InternFromString("data_ptr");
    PyObject* const found = PyObject_CallMethodNoArgs(tensor.ptr(), kDataPtr);
    if (!found) {
        if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) throw py::error_already_set();
        PyErr_Clear();
        refuse(tensor);
    }
    void* const data = PyLong_AsVoidPtr(found);
    Py_DECREF(found);
    if (!data && PyErr_Occurred()) throw py::error_already_set();
    if (!data && tensor.attr("numel")().cast<int64_t>() != 0) refuse(tensor);
    return data;
}

// The memory of a tensor, or of none.
template <typename T>
struct Memory {
    T* data = nullptr;
    operator T*() const { return data; }
};

// Features and the tensor whose memory they are.
struct HeldFeatures {
    py::object tensor;
    Features features;
    operator const Features&() const { return features; }
};

}  // namespace

template <typename T>
struct pybind11::detail::type_caster<Memory<T>> {
    PYBIND11_TYPE_CASTER(Memory<T>, const_name("Tensor | None"));

    bool load(handle tensor, bool) {
        if (!tensor.is_none()) value.data = static_cast<T*>(address(tensor));
        return true;
    }
};

namespace {

using Labels = Memory<const void>;
using Workspace = Memory<void>;

HeldFeatures features(py::object tensor, int dtype, int64_t n, int64_t channels, int64_t positions,
                      int64_t stride_n, int64_t stride_c, int64_t stride_p) {
    const void* const data = address(tensor);
    return {std::move(tensor),
            {data, static_cast<DType>(dtype), n, channels, positions, stride_n, stride_c, stride_p}};
}

ClassOrder class_order(Labels labels, bool labels_int64, int64_t label_stride, int64_t n,
                       int64_t classes, int64_t blocks, Memory<const int64_t> seen,
                       Memory<int32_t> order, Memory<int64_t> offsets, Memory<int64_t> status,
                       Workspace workspace) {
    return {labels, labels_int64, label_stride, n, classes, blocks, seen, order, offsets, status,
            workspace};
}

ClassMoments class_moments(const HeldFeatures& x, Memory<const int32_t> order,
                           Memory<const int64_t> offsets, int64_t groups, bool squares,
                           bool skip_nonfinite, Memory<int64_t> counts, Memory<double> sums,
                           Memory<double> sumsq, Memory<int64_t> status, Workspace workspace) {
    return {x, order, offsets, groups, squares, skip_nonfinite, counts, sums, sumsq, status, workspace};
}

LabelledMoments labelled_moments(const HeldFeatures& x, Labels labels, bool labels_int64,
                                 int64_t label_stride, int64_t classes, int64_t blocks, bool squares,
                                 bool skip_nonfinite, bool zeroed, Memory<int64_t> seen,
                                 Memory<int64_t> counts, Memory<double> sums, Memory<double> sumsq,
                                 Memory<int64_t> status) {
    return {x,       labels,         labels_int64, label_stride, classes, blocks, squares,
            skip_nonfinite, zeroed, seen,         counts,       sums,    sumsq,  status};
}

PairCounts pair_counts(Labels labels_a, bool int64_a, int64_t stride_a, Labels labels_b, bool int64_b,
                       int64_t stride_b, int64_t n, int64_t count_a, int64_t count_b,
                       Memory<int64_t> table, Memory<int64_t> status_a, Memory<int64_t> status_b,
                       Workspace workspace) {
    return {labels_a, labels_b, int64_a, int64_b, stride_a, stride_b, n, count_a, count_b, table,
            status_a, status_b, workspace};
}

LloydStep lloyd_step(const HeldFeatures& x, Memory<const double> centers, int64_t k,
                     Memory<int64_t> labels, Memory<double> distances, Memory<double> inertia,
                     Memory<double> sums, Memory<int64_t> counts, Memory<int64_t> rechecked,
                     Memory<int64_t> status, Workspace workspace) {
    return {x, centers, k, labels, distances, inertia, sums, counts, rechecked, status, workspace};
}

SpatialMean spatial_mean(const HeldFeatures& x, Memory<void> means) { return {x, means}; }

RowDistances row_distances(const HeldFeatures& x_old, const HeldFeatures& x_new,
                           const std::vector<int32_t>& bins, bool shared, bool skip_nonfinite,
                           Memory<double> sums, Memory<double> rows, Memory<int32_t> counts,
                           Memory<int64_t> float64_edges, Memory<int64_t> status_old,
                           Memory<int64_t> status_new, Memory<int64_t> left_out, Workspace workspace) {
    return {x_old, x_new, bins.data(), static_cast<int64_t>(bins.size()), shared, skip_nonfinite, sums,
            rows, counts, float64_edges, status_old, status_new, left_out, workspace};
}

ValueHistogram value_histogram(const HeldFeatures& x, bool by_channel, int64_t bits,
                               Memory<int64_t> counts, Memory<int64_t> status, Workspace workspace) {
    return {x, by_channel, bits, counts, status, workspace};
}

// A call without the GIL, which Ctrl-C ends: between pieces of work it runs Python's signal handlers,
// and stops where one raises.
class PythonCall : public cpu::Call {
   public:
    PythonCall() : thread_(PyEval_SaveThread()) {}
    ~PythonCall() override { PyEval_RestoreThread(thread_); }

   protected:
    bool should_stop() override {
        PyEval_RestoreThread(thread_);
        const bool raised = PyErr_CheckSignals() != 0;
        thread_ = PyEval_SaveThread();
        return raised;
    }

   private:
    PyThreadState* thread_;
};

template <typename Args, typename... In>
auto on_threads(Args (*make)(In...), void (*kernel)(const Args&, int)) {
    return [make, kernel](In... in, int threads) {
        const Args args = make(in...);
        try {
            PythonCall call;
            const cpu::CallScope scope(&call);
            kernel(args, threads);
        } catch (const cpu::Stopped&) {
            throw py::error_already_set();
        }
    };
}

// Workspaces are sized by the features that come with them.
template <typename... In>
auto sized(int64_t (*workspace)(const Features&, In...)) {
    return [workspace](const HeldFeatures& x, In... in) { return workspace(x, in...); };
}

#ifdef RESQUE_WITH_CUDA
template <typename Args, typename... In>
auto on_stream(Args (*make)(In...), void (*launcher)(const Args&, int, void*)) {
    return [make, launcher](In... in, int device, uintptr_t stream) {
        const Args args = make(in...);
        const py::gil_scoped_release unlocked;
        launcher(args, device, reinterpret_cast<void*>(stream));
    };
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
    m.attr("interface") = 2;  // what Python expects of this file: see ops/backend.py
    py::class_<HeldFeatures>(m, "Features", py::module_local()).def(py::init(&features));

    m.def("build_info", &build_info);
    m.def("choose_instruction_set",
          [](const std::string& name) { cpu::choose_instruction_set(name.c_str()); });

    auto cpu = m.def_submodule("cpu");
    cpu.def("class_order_workspace", &cpu::class_order_workspace);
    cpu.def("class_order", on_threads(&class_order, &cpu::class_order));
    cpu.def("class_moments_workspace", sized(&cpu::class_moments_workspace));
    cpu.def("class_moments", on_threads(&class_moments, &cpu::class_moments));
    cpu.def("labelled_moments", on_threads(&labelled_moments, &cpu::labelled_moments));
    cpu.def("pair_counts_workspace", &cpu::pair_counts_workspace);
    cpu.def("pair_counts", on_threads(&pair_counts, &cpu::pair_counts));
    cpu.def("lloyd_step_workspace", sized(&cpu::lloyd_step_workspace));
    cpu.def("lloyd_step", on_threads(&lloyd_step, &cpu::lloyd_step));
    cpu.def("spatial_mean", on_threads(&spatial_mean, &cpu::spatial_mean));
    cpu.def("row_distances_workspace", sized(&cpu::row_distances_workspace));
    cpu.def("row_distances", on_threads(&row_distances, &cpu::row_distances));
    cpu.def("value_histogram_workspace", sized(&cpu::value_histogram_workspace));
    cpu.def("value_histogram", on_threads(&value_histogram, &cpu::value_histogram));

#ifdef RESQUE_WITH_CUDA
    auto cuda = m.def_submodule("cuda");
    cuda.def("class_order_workspace", &cuda::class_order_workspace);
    cuda.def("class_order", on_stream(&class_order, &cuda::class_order));
    cuda.def("class_moments_workspace", sized(&cuda::class_moments_workspace));
    cuda.def("class_moments", on_stream(&class_moments, &cuda::class_moments));
    cuda.def("pair_counts_workspace", &cuda::pair_counts_workspace);
    cuda.def("pair_counts", on_stream(&pair_counts, &cuda::pair_counts));
    cuda.def("spatial_mean", on_stream(&spatial_mean, &cuda::spatial_mean));
    cuda.def("lloyd_step_workspace", sized(&cuda::lloyd_step_workspace));
    cuda.def("lloyd_step", on_stream(&lloyd_step, &cuda::lloyd_step));
    cuda.def("row_distances_workspace", sized(&cuda::row_distances_workspace));
    cuda.def("row_distances", on_stream(&row_distances, &cuda::row_distances));
    cuda.def("value_histogram_workspace", sized(&cuda::value_histogram_workspace));
    cuda.def("value_histogram", on_stream(&value_histogram, &cuda::value_histogram));
#endif
}
