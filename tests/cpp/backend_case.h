// A head and gaps for the CPU backend, in buffers of exactly the reported sizes, and the outputs of one call.
#pragma once

#include <limits>
#include <new>
#include <string>
#include <vector>

#include "backend.h"
#include "check.h"
#include "kkt.h"
#include "problems.h"

namespace tacfast::test {

template <class T>
constexpr Scalar scalar_of = sizeof(T) == 4 ? Scalar::f32 : Scalar::f64;

// Zero bytes are one byte nobody may touch. Filled with NaN, so that what is read unwritten shows.
class Aligned {
  public:
    explicit Aligned(int64_t bytes_)
        : bytes(static_cast<size_t>(bytes_)), memory(::operator new(bytes, std::align_val_t(64))) {
        std::memset(memory, 0xff, bytes);
    }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
    ~Aligned() { ::operator delete(memory, std::align_val_t(64)); }

    void* get() const { return memory; }
    double* doubles() const { return static_cast<double*>(memory); }
    bool operator==(const Aligned& o) const { return bytes == o.bytes && std::memcmp(memory, o.memory, bytes) == 0; }

  private:
    size_t bytes;
    void* memory;
};

// W with NaN between its rows, prepared.
template <class T>
struct Prepared {
    int64_t classes, dim, row_stride, stride;
    std::vector<T> W;
    Aligned memory;

    Prepared(const std::vector<T>& tight, int64_t classes_, int64_t dim_, int threads,
             const std::vector<double>& bias = {})
        : classes(classes_),
          dim(dim_),
          row_stride(dim_ + 3),
          stride(padded_dim(dim_)),
          W(static_cast<size_t>((classes - 1) * row_stride + dim), std::numeric_limits<T>::quiet_NaN()),
          memory(prepared_size(classes, dim) * 8) {
        for (int64_t j = 0; j < classes; ++j) std::copy_n(tight.data() + j * dim, dim, W.data() + j * row_stride);
        HeadPreparation args{scalar_of<T>,     W.data(), classes, dim, row_stride, bias.empty() ? nullptr : bias.data(),
                             memory.doubles(), threads};
        cpu::prepare_head(args);
    }

    PreparedHead view() const {
        return {memory.doubles(), classes, dim, 4 * double(std::numeric_limits<T>::epsilon())};
    }
    double same() const { return view().same_share * view().longest(); }
};

// What one call is to do; everything else is fixed.
template <class T>
struct Question {
    const Prepared<T>& head;
    std::vector<T> right;  // gaps, R[k, j] at k + j * C (as GapUpdate leaves them); or logits (n, C)
    std::vector<int64_t> targets;
    double margin = 0;
    std::vector<double> guess{};
    int max_iter = 1000, max_active = 1000;

    static constexpr double kTol = sizeof(T) == 4 ? 1e-6 : 1e-10;

    Definition definition(int64_t k, const T* rho_row, int64_t step) const {
        const int C = int(head.classes);
        const double* bias = head.view().bias();
        Definition qp(head.view().rows(), C, int(head.dim), int(head.stride), int(k));
        for (int j = 0; j < C; ++j) {
            const bool kept = j != k && qp.length(j) > head.same();
            const double rho =
                kept ? double(rho_row[j * step]) - (step == 1 ? double(rho_row[k]) : 0.0) : bias[j] - bias[k];
            qp.kept.push_back(kept);
            qp.rho.push_back(j == k ? 0.0 : rho + margin);
        }
        return qp;
    }
};

// The outputs of solve_classes; `fill` is what they held before.
template <class T>
struct ClassAnswer {
    std::vector<T> perturbations, norms, duals;
    std::vector<int8_t> status;
    std::vector<int32_t> iterations;
    std::vector<double> certificate;

    ClassAnswer(const Question<T>& q, int threads, T fill)
        : perturbations(q.targets.size() * q.head.dim, fill),
          norms(q.targets.size(), fill),
          duals(q.targets.size() * q.head.classes, fill),
          status(q.targets.size(), int8_t(fill)),
          iterations(q.targets.size(), int32_t(fill)),
          certificate(q.targets.size() * kCertificateFields, double(fill)) {
        const int64_t C = q.head.classes, d = q.head.dim;
        const Aligned workspace(cpu::solve_workspace_bytes(C, d, threads));
        ClassSolve args{};
        args.scalar = scalar_of<T>;
        args.head = q.head.view();
        args.gaps = q.right.data();
        args.gap_stride_k = 1;
        args.gap_stride_j = C;
        args.targets = q.targets.data();
        args.count = args.last = int64_t(q.targets.size());
        args.margin = q.margin;
        args.tol = Question<T>::kTol;
        args.max_iter = q.max_iter;
        args.max_active = q.max_active;
        args.guess = q.guess.empty() ? nullptr : q.guess.data();
        args.perturbations = perturbations.data();
        args.norms = norms.data();
        args.status = status.data();
        args.iterations = iterations.data();
        args.duals = duals.data();
        args.certificate = certificate.data();
        args.workspace = workspace.get();
        args.threads = threads;
        cpu::solve_classes(args);
    }

    bool operator==(const ClassAnswer& o) const {
        return same_bits(perturbations, o.perturbations) && same_bits(norms, o.norms) && same_bits(duals, o.duals) &&
               same_bits(status, o.status) && iterations == o.iterations && same_bits(certificate, o.certificate);
    }
};

// The outputs of solve_samples.
template <class T>
struct SampleAnswer {
    std::vector<T> norms, perturbations;
    std::vector<int8_t> status;
    std::vector<int32_t> iterations;
    std::vector<double> certificate;

    SampleAnswer(const Question<T>& q, int64_t n, bool with_points, int threads, T fill)
        : norms(n * q.targets.size(), fill),
          perturbations(with_points ? n * q.targets.size() * q.head.dim : 0, fill),
          status(n * q.targets.size(), int8_t(fill)),
          iterations(n * q.targets.size(), int32_t(fill)),
          certificate(q.targets.size() * kCertificateFields, 0.0) {
        const int64_t C = q.head.classes, d = q.head.dim, K = int64_t(q.targets.size());
        for (int64_t r = 0; r < K; ++r) certificate[4 * K + r] = INFINITY;  // nothing folded in yet
        const Aligned workspace(cpu::sample_workspace_bytes(C, d, K, threads));
        SampleSolve args{};
        args.scalar = scalar_of<T>;
        args.head = q.head.view();
        args.logits = q.right.data();
        args.n = n;
        args.targets = q.targets.data();
        args.count = K;
        args.margin = q.margin;
        args.tol = Question<T>::kTol;
        args.max_iter = q.max_iter;
        args.norms = norms.data();
        args.status = status.data();
        args.iterations = iterations.data();
        args.perturbations = with_points ? perturbations.data() : nullptr;
        args.certificate = certificate.data();
        args.workspace = workspace.get();
        args.threads = threads;
        cpu::solve_samples(args);
    }

    bool operator==(const SampleAnswer& o) const {
        return same_bits(norms, o.norms) && same_bits(perturbations, o.perturbations) && same_bits(status, o.status) &&
               iterations == o.iterations && same_bits(certificate, o.certificate);
    }
};

}  // namespace tacfast::test
