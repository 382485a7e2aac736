// Python's view of the backends: addresses, sizes and strides in, small results out. tacfast/solver/_compiled.py is the only
// caller; it has checked everything.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "backend.h"

namespace py = pybind11;
using tacfast::Scalar;

namespace {

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

tacfast::PreparedHead prepared_head(uintptr_t memory, int64_t classes, int64_t dim, double same_share) {
    return {at<double>(memory), classes, dim, same_share};
}

tacfast::GapUpdate gap_update(int scalar, uintptr_t logits, int64_t n, int64_t classes, int64_t row_stride,
                              uintptr_t gaps, uintptr_t workspace, int threads) {
    return {Scalar(scalar), at<void>(logits), n, classes, row_stride, at<void>(gaps), at<void>(workspace), threads};
}

tacfast::FusedGaps fused_gaps(int scalar, int latent_scalar, uintptr_t latents, int64_t n, int64_t dim,
                              int64_t row_stride, uintptr_t weights, int64_t weight_stride, uintptr_t offset,
                              int64_t classes, uintptr_t gaps, uintptr_t workspace) {
    return {Scalar(scalar),
            Scalar(latent_scalar),
            at<void>(latents),
            n,
            dim,
            row_stride,
            at<void>(weights),
            weight_stride,
            at<void>(offset),
            classes,
            at<void>(gaps),
            at<void>(workspace)};
}

tacfast::TrimmedGaps trimmed_gaps(int scalar, uintptr_t rows, int64_t n, int64_t classes, double trim, uintptr_t gaps,
                                  uintptr_t workspace, int threads) {
    return {Scalar(scalar), at<int64_t>(rows), n, classes, trim, at<void>(gaps), at<void>(workspace), threads};
}

tacfast::ClassSolve class_solve(int scalar, const tacfast::PreparedHead& head, uintptr_t gaps, int64_t gap_stride_k,
                                int64_t gap_stride_j, uintptr_t targets, int64_t count, int64_t first, int64_t last,
                                double margin, double tol, int max_iter, int max_active, uintptr_t guess,
                                uintptr_t perturbations, uintptr_t norms, uintptr_t status, uintptr_t duals,
                                uintptr_t certificate, uintptr_t workspace, int threads) {
    return {Scalar(scalar),
            head,
            at<void>(gaps),
            {gap_stride_k, gap_stride_j},
            at<int64_t>(targets),
            count,
            first,
            last,
            margin,
            tol,
            max_iter,
            max_active,
            at<double>(guess),
            at<void>(perturbations),
            at<void>(norms),
            at<int8_t>(status),
            at<void>(duals),
            at<double>(certificate),
            at<void>(workspace),
            threads};
}

tacfast::SampleSolve sample_solve(int scalar, const tacfast::PreparedHead& head, uintptr_t logits, int64_t n,
                                  uintptr_t targets, int64_t count, double margin, double tol, int max_iter,
                                  uintptr_t norms, uintptr_t status, uintptr_t perturbations, uintptr_t certificate,
                                  uintptr_t workspace, int threads) {
    return {Scalar(scalar),
            head,
            at<void>(logits),
            n,
            at<int64_t>(targets),
            count,
            margin,
            tol,
            max_iter,
            at<void>(norms),
            at<int8_t>(status),
            at<void>(perturbations),
            at<double>(certificate),
            at<void>(workspace),
            threads};
}

bool prepare_head(int scalar, uintptr_t W, uintptr_t bias, int64_t classes, int64_t dim, int64_t row_stride,
                  uintptr_t memory, int threads) {
    tacfast::HeadPreparation args{Scalar(scalar),   at<void>(W),        classes, dim, row_stride,
                                  at<double>(bias), at<double>(memory), threads};
    tacfast::cpu::prepare_head(args);
    return args.finite;
}

void multiply_logits(int scalar, const tacfast::PreparedHead& head, uintptr_t latents, int64_t n, int64_t row_stride,
                     uintptr_t logits, uintptr_t workspace) {
    tacfast::cpu::multiply_logits(
        {Scalar(scalar), head, at<void>(latents), n, row_stride, at<void>(logits), at<void>(workspace)});
}

tacfast::WholeSolve whole_solve(int scalar, uintptr_t latents, int64_t n, int64_t latent_stride, int weight_scalar,
                                uintptr_t W, int64_t weight_stride, uintptr_t bias, int64_t classes, int64_t dim,
                                double same_share, double shortest, uintptr_t targets, int64_t count, double margin,
                                double tol, int max_iter, uintptr_t gaps, uintptr_t perturbations, uintptr_t norms,
                                uintptr_t status, uintptr_t duals, uintptr_t certificate) {
    return {Scalar(scalar),
            at<void>(latents),
            n,
            latent_stride,
            Scalar(weight_scalar),
            at<void>(W),
            weight_stride,
            at<double>(bias),
            classes,
            dim,
            same_share,
            shortest,
            at<int64_t>(targets),
            count,
            margin,
            tol,
            max_iter,
            at<void>(gaps),
            at<void>(perturbations),
            at<void>(norms),
            at<int8_t>(status),
            at<void>(duals),
            at<double>(certificate),
            nullptr};
}

void define_arguments(py::module_& m) {
    py::class_<tacfast::WholeSolve>(m, "WholeSolve").def(py::init(&whole_solve));
    py::class_<tacfast::PreparedHead>(m, "PreparedHead").def(py::init(&prepared_head));
    py::class_<tacfast::GapUpdate>(m, "GapUpdate").def(py::init(&gap_update));
    py::class_<tacfast::FusedGaps>(m, "FusedGaps").def(py::init(&fused_gaps));
    py::class_<tacfast::TrimmedGaps>(m, "TrimmedGaps").def(py::init(&trimmed_gaps));
    py::class_<tacfast::ClassSolve>(m, "ClassSolve").def(py::init(&class_solve));
    py::class_<tacfast::SampleSolve>(m, "SampleSolve").def(py::init(&sample_solve));
}

using Unlocked = py::call_guard<py::gil_scoped_release>;

#ifdef TACFAST_WITH_CUDA
// A launcher as Python calls it: on the stream of a device, with an exception for what went wrong.
template <class Args>
auto launcher(tacfast::cuda::Fault (*launch)(const Args&, tacfast::cuda::Queue)) {
    return [launch](const Args& args, int device, uintptr_t stream) {
        const tacfast::cuda::Fault fault = launch(args, {device, at<void>(stream)});
        if (fault.kernel != nullptr)
            throw std::runtime_error(std::string("CUDA kernel ") + fault.kernel + ": " + fault.message);
    };
}

void define_cuda(py::module_ m) {
    namespace cuda = tacfast::cuda;
    m.def("gap_workspace_bytes",
          [](int scalar, int64_t n, int64_t classes) { return cuda::gap_workspace_bytes(Scalar(scalar), n, classes); });
    m.def("fused_workspace_bytes",
          [](int scalar, int64_t classes) { return cuda::fused_workspace_bytes(Scalar(scalar), classes); });
    m.def("trim_workspace_bytes", [](int scalar, int64_t n, int64_t classes) {
        return cuda::trim_workspace_bytes(Scalar(scalar), n, classes);
    });
    m.def("solve_workspace_bytes", &cuda::solve_workspace_bytes);
    m.def("sample_workspace_bytes", &cuda::sample_workspace_bytes);
    m.def("update_gaps", launcher(&cuda::update_gaps), Unlocked());
    m.def("update_gaps_plain", launcher(&cuda::update_gaps_plain), Unlocked());
    m.def("update_gaps_fused", launcher(&cuda::update_gaps_fused), Unlocked());
    m.def("trimmed_gaps", launcher(&cuda::trimmed_gaps), Unlocked());
    m.def("solve_classes", launcher(&cuda::solve_classes), Unlocked());
    m.def("solve_samples", launcher(&cuda::solve_samples), Unlocked());
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
    m.doc() = "tacfast's compiled core";
    define_arguments(m);
    m.def("build_info", &build_info);
    m.def("padded_dim", &tacfast::padded_dim);
    m.def("whole_workspace_bytes", &tacfast::cpu::whole_workspace_bytes);
    m.def(
        "solve_whole",
        [](tacfast::WholeSolve args, uintptr_t workspace) {
            args.workspace = at<void>(workspace);
            return tacfast::cpu::solve_whole(args);
        },
        Unlocked());
    m.def("prepare_head", &prepare_head, Unlocked());
    m.def("multiply_logits", &multiply_logits, Unlocked());
    m.def("gap_workspace_bytes", [](int scalar, int64_t n, int64_t classes, int threads) {
        return tacfast::cpu::gap_workspace_bytes(Scalar(scalar), n, classes, threads);
    });
    m.def(
        "update_gaps",
        [](tacfast::GapUpdate args) {
            tacfast::cpu::update_gaps(args);
            return args.first_bad;
        },
        Unlocked());
    m.def("trim_workspace_bytes", [](int scalar, int64_t n, int64_t classes) {
        return tacfast::cpu::trim_workspace_bytes(Scalar(scalar), n, classes);
    });
    m.def("trimmed_gaps", &tacfast::cpu::trimmed_gaps, Unlocked());
    m.def("solve_workspace_bytes", &tacfast::cpu::solve_workspace_bytes);
    m.def("solve_classes", &tacfast::cpu::solve_classes, Unlocked());
    m.def("sample_workspace_bytes", &tacfast::cpu::sample_workspace_bytes);
    m.def("solve_samples", &tacfast::cpu::solve_samples, Unlocked());
#ifdef TACFAST_WITH_CUDA
    define_cuda(m.def_submodule("cuda"));
#endif
}
