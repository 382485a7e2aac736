// Python's view of the backends: addresses, sizes and strides in, small results out. tacfast/solver/_compiled.py is the
// only caller; it has checked everything.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "backend.h"

namespace py = pybind11;
using namespace py::literals;
using tacfast::Scalar;

namespace {

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// How Python gives what a field holds: addresses and scalar types are integers.
template <class T>
struct Given {
    using Type = T;
    static T field(T value) { return value; }
};
template <class T>
struct Given<T*> {
    using Type = uintptr_t;
    static T* field(uintptr_t address) { return at<T>(address); }
};
template <>
struct Given<Scalar> {
    using Type = int;
    static Scalar field(int value) { return Scalar(value); }
};

// A field of a struct of arguments, with its name.
template <class Args, class T, T Args::* member>
struct Field {
    using As = Given<T>;
    const char* name;
    static void fill(Args& args, typename As::Type value) { args.*member = As::field(value); }
};
#define FIELD(name) \
    Field<Args, decltype(Args::name), &Args::name> { #name }

// How Python gives the fields of a struct. By name takes some 60 ns for each more than in order.
enum class Filled { by_name, in_order };

// A struct of arguments, which Python makes of these fields.
template <class Args, Filled how = Filled::by_name, class... Fields>
void define(py::module_& m, const char* name, Fields... fields) {
    auto make = [](typename Fields::As::Type... values) {
        Args args{};
        (Fields::fill(args, values), ...);
        return args;
    };
    py::class_<Args> type(m, name);
    if constexpr (how == Filled::by_name)
        type.def(py::init(make), py::kw_only(), py::arg(fields.name)...);
    else
        type.def(py::init(make), py::arg(fields.name)...);
}

void define_arguments(py::module_& m) {
    {
        using Args = tacfast::PreparedHead;
        define<Args>(m, "PreparedHead", FIELD(memory), FIELD(classes), FIELD(dim), FIELD(same_share));
    }
    {
        using Args = tacfast::HeadPreparation;
        define<Args>(m, "HeadPreparation", FIELD(scalar), FIELD(W), FIELD(classes), FIELD(dim), FIELD(row_stride),
                     FIELD(bias), FIELD(memory), FIELD(threads));
    }
    {
        using Args = tacfast::LogitProduct;
        define<Args>(m, "LogitProduct", FIELD(scalar), FIELD(head), FIELD(latents), FIELD(n), FIELD(row_stride),
                     FIELD(logits), FIELD(workspace));
    }
    {
        using Args = tacfast::GapUpdate;
        define<Args>(m, "GapUpdate", FIELD(scalar), FIELD(logits), FIELD(n), FIELD(classes), FIELD(row_stride),
                     FIELD(gaps), FIELD(workspace), FIELD(threads));
    }
    {
        using Args = tacfast::FusedGaps;
        define<Args>(m, "FusedGaps", FIELD(scalar), FIELD(latent_scalar), FIELD(latents), FIELD(n), FIELD(dim),
                     FIELD(row_stride), FIELD(weights), FIELD(weight_stride), FIELD(offset), FIELD(classes),
                     FIELD(gaps), FIELD(workspace));
    }
    {
        using Args = tacfast::TrimmedGaps;
        define<Args>(m, "TrimmedGaps", FIELD(scalar), FIELD(rows), FIELD(n), FIELD(classes), FIELD(trim), FIELD(gaps),
                     FIELD(workspace), FIELD(threads));
    }
    {
        using Args = tacfast::ClassSolve;
        define<Args>(m, "ClassSolve", FIELD(scalar), FIELD(head), FIELD(gaps), FIELD(gap_stride_k), FIELD(gap_stride_j),
                     FIELD(targets), FIELD(count), FIELD(first), FIELD(last), FIELD(margin), FIELD(tol),
                     FIELD(max_iter), FIELD(max_active), FIELD(guess), FIELD(perturbations), FIELD(norms),
                     FIELD(status), FIELD(iterations), FIELD(duals), FIELD(certificate), FIELD(workspace),
                     FIELD(threads));
    }
    {
        using Args = tacfast::SampleSolve;
        define<Args>(m, "SampleSolve", FIELD(scalar), FIELD(head), FIELD(logits), FIELD(n), FIELD(targets),
                     FIELD(count), FIELD(margin), FIELD(tol), FIELD(max_iter), FIELD(norms), FIELD(status),
                     FIELD(iterations), FIELD(perturbations), FIELD(certificate), FIELD(workspace), FIELD(threads));
    }
    {
        using Args = tacfast::WholeSolve;
        define<Args, Filled::in_order>(
            m, "WholeSolve", FIELD(scalar), FIELD(latents), FIELD(n), FIELD(latent_stride), FIELD(weight_scalar),
            FIELD(W), FIELD(weight_stride), FIELD(bias), FIELD(classes), FIELD(dim), FIELD(same_share), FIELD(shortest),
            FIELD(targets), FIELD(count), FIELD(margin), FIELD(tol), FIELD(max_iter), FIELD(gaps), FIELD(perturbations),
            FIELD(norms), FIELD(status), FIELD(iterations), FIELD(duals), FIELD(certificate));
    }
}

using Unlocked = py::call_guard<py::gil_scoped_release>;

#ifdef TACFAST_WITH_CUDA
// A launcher as Python calls it: on the stream of a device, with an exception for what went wrong.
template <class Args>
void define_launch(py::module_& m, const char* name,
                   tacfast::cuda::Fault (*launch)(const Args&, tacfast::cuda::Queue)) {
    auto call = [launch](const Args& args, int device, uintptr_t stream) {
        const tacfast::cuda::Fault fault = launch(args, {device, at<void>(stream)});
        if (fault.kernel != nullptr)
            throw std::runtime_error(std::string("CUDA kernel ") + fault.kernel + ": " + fault.message);
    };
    m.def(name, call, "args"_a, "device"_a, "stream"_a, Unlocked());
}

void define_cuda(py::module_ m) {
    namespace cuda = tacfast::cuda;
    m.def(
        "gap_workspace_bytes",
        [](int scalar, int64_t n, int64_t classes) { return cuda::gap_workspace_bytes(Scalar(scalar), n, classes); },
        "scalar"_a, "n"_a, "classes"_a);
    m.def(
        "fused_workspace_bytes",
        [](int scalar, int64_t classes) { return cuda::fused_workspace_bytes(Scalar(scalar), classes); }, "scalar"_a,
        "classes"_a);
    m.def(
        "trim_workspace_bytes",
        [](int scalar, int64_t n, int64_t classes) { return cuda::trim_workspace_bytes(Scalar(scalar), n, classes); },
        "scalar"_a, "n"_a, "classes"_a);
    m.def("solve_workspace_bytes", &cuda::solve_workspace_bytes, "classes"_a, "dim"_a, "count"_a);
    m.def("sample_workspace_bytes", &cuda::sample_workspace_bytes, "classes"_a, "dim"_a, "n"_a, "count"_a);
    define_launch(m, "update_gaps", &cuda::update_gaps);
    define_launch(m, "update_gaps_plain", &cuda::update_gaps_plain);
    define_launch(m, "update_gaps_fused", &cuda::update_gaps_fused);
    define_launch(m, "trimmed_gaps", &cuda::trimmed_gaps);
    define_launch(m, "solve_classes", &cuda::solve_classes);
    define_launch(m, "solve_samples", &cuda::solve_samples);
}
#endif

py::dict build_info() {
    py::dict info;
    info["cpu_instruction_set"] = tacfast::cpu::instruction_set();
#ifdef TACFAST_WITH_CUDA
    const tacfast::cuda::DeviceReport report = tacfast::cuda::devices();
    info["cuda_archs"] = TACFAST_CUDA_ARCHS;
    info["cuda_runtime"] = report.runtime;
    info["cuda_driver"] = report.driver;
    info["cuda_devices"] = report.count;
    info["cuda_message"] = report.message;
#endif
    return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    namespace cpu = tacfast::cpu;
    m.doc() = "tacfast's compiled core";
    define_arguments(m);
    m.def("build_info", &build_info);
    m.def("padded_dim", &tacfast::padded_dim, "dim"_a);
    m.def("whole_workspace_bytes", &cpu::whole_workspace_bytes, "args"_a);
    m.def(
        "solve_whole",
        [](tacfast::WholeSolve args, uintptr_t workspace) {
            args.workspace = at<void>(workspace);
            return cpu::solve_whole(args);
        },
        "args"_a, "workspace"_a, Unlocked());
    m.def(
        "prepare_head",
        [](tacfast::HeadPreparation args) {
            cpu::prepare_head(args);
            return args.finite;
        },
        "args"_a, Unlocked());
    m.def("multiply_logits", &cpu::multiply_logits, "args"_a, Unlocked());
    m.def(
        "gap_workspace_bytes",
        [](int scalar, int64_t n, int64_t classes, int threads) {
            return cpu::gap_workspace_bytes(Scalar(scalar), n, classes, threads);
        },
        "scalar"_a, "n"_a, "classes"_a, "threads"_a);
    m.def(
        "update_gaps",
        [](tacfast::GapUpdate args) {
            cpu::update_gaps(args);
            return args.first_bad;
        },
        "args"_a, Unlocked());
    m.def(
        "trim_workspace_bytes",
        [](int scalar, int64_t n, int64_t classes) { return cpu::trim_workspace_bytes(Scalar(scalar), n, classes); },
        "scalar"_a, "n"_a, "classes"_a);
    m.def("trimmed_gaps", &cpu::trimmed_gaps, "args"_a, Unlocked());
    m.def("solve_workspace_bytes", &cpu::solve_workspace_bytes, "classes"_a, "dim"_a, "threads"_a);
    m.def("solve_classes", &cpu::solve_classes, "args"_a, Unlocked());
    m.def("sample_workspace_bytes", &cpu::sample_workspace_bytes, "classes"_a, "dim"_a, "count"_a, "threads"_a);
    m.def("solve_samples", &cpu::solve_samples, "args"_a, Unlocked());
#ifdef TACFAST_WITH_CUDA
    define_cuda(m.def_submodule("cuda"));
#endif
}
