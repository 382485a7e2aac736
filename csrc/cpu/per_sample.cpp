// One QP per sample and class on the CPU: the constraints of a class are screened once for a block of samples.
#include "core/class_qp.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace tacfast::cpu::TACFAST_ISA {
namespace {

using namespace core;

constexpr SerialTeam team;
constexpr int64_t kBlock = 1024;  // samples of one class in one task

int64_t worker_size(int64_t classes, int64_t dim, int64_t count) {
    return Work::size(int(classes), int(dim), int(padded_dim(dim))) + 4 * padded_dim(classes) +
           padded_dim(kCertificateFields * count);
}

// Folds one certificate into the summary of its class: the worst residuals, the widest bounds.
void fold(double* summary, int64_t count, const Certificate& one) {
    const double values[4] = {one.primal, one.dual, one.stationarity, one.gap};
    for (int f = 0; f < 4; ++f)
        if (!(values[f] <= summary[f * count])) summary[f * count] = values[f];
    if (one.lower < summary[4 * count]) summary[4 * count] = one.lower;
    if (one.upper > summary[5 * count]) summary[5 * count] = one.upper;
}

void start_summary(double* summary, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
        for (int f = 0; f < 4; ++f) summary[f * count + r] = 0;
        summary[4 * count + r] = INFINITY;
        summary[5 * count + r] = 0;
    }
}

template <class T>
class SampleWorker {
  public:
    SampleWorker(const SampleSolve& args_, int worker)
        : args(args_),
          head{args.rows, args.gram, int(args.classes), int(args.dim), int(padded_dim(args.dim)), args.longest},
          limits{args.max_iter, int(args.classes)} {
        double* memory =
            static_cast<double*>(args.workspace) + worker * worker_size(args.classes, args.dim, args.count);
        const int64_t C = padded_dim(args.classes);
        constraints = {0, memory, memory + C, memory + 2 * C, memory + 3 * C};
        summary = memory + 4 * C;
        work = Work::carve(summary + padded_dim(kCertificateFields * args.count), head.classes, head.dim, head.stride);
    }

    double* summary;  // (kCertificateFields, K)

    void block(int64_t r, int64_t first, int64_t last) {
        const int k = int(args.targets[r]);
        constraints.target = k;
        const Screening screening =
            screen(team, head, constraints, args.bias, args.margin, args.same, [](int) { return 0.0; });
        for (int64_t i = first; i < last; ++i) sample(screening, r, i);
    }

  private:
    const SampleSolve& args;
    const Head head;
    const Limits limits;
    Constraints constraints;
    Work work;

    void sample(const Screening& screening, int64_t r, int64_t i) {
        const T* logits = static_cast<const T*>(args.logits) + i * args.classes;
        const int k = constraints.target;
        bool satisfied = true, finite = true;
        for (int j = 0; j < head.classes; ++j) {
            if (constraints.norm2[j] == 0) continue;
            const double rho = double(logits[j]) - double(logits[k]) + args.margin;
            constraints.rho[j] = rho;
            satisfied &= rho <= 0;
            finite &= std::isfinite(rho) != 0;
        }
        work.set.size = 0;
        work.set.norm = 0;
        if (!finite) return finish(r, i, kInvalidInput, NAN, {NAN, NAN, NAN, NAN, 0, INFINITY});
        if (screening.clash >= 0) return finish(r, i, kInfeasible, INFINITY, {0, 0, 0, 0, INFINITY, INFINITY});
        if (satisfied) return finish(r, i, kOptimal, 0, {0, 0, 0, 0, 0, 0});
        solve(screening.hard, r, i);
    }

    void solve(bool hard, int64_t r, int64_t i) {
        Outcome outcome = hard ? Outcome::ambiguous : solve_by_gram();
        Certificate certificate = evaluate();
        if (outcome == Outcome::ambiguous || (outcome == Outcome::settled && !certificate.within(args.tol))) {
            outcome = solve_by_rows(team, head, constraints, work, limits);
            certificate = evaluate();
        }
        release();
        if (outcome == Outcome::infeasible) return finish_ray(r, i);
        const int8_t failed = outcome == Outcome::settled ? kInaccurate : kMaxIter;
        const int8_t status = certificate.within(args.tol) ? int8_t(kOptimal) : failed;
        finish(r, i, status, work.set.norm, certificate);
    }

    Outcome solve_by_gram() {
        GramGeometry geometry{head, work.basis, work.scratch};
        return solve_active_set(team, head, geometry, constraints, work.set, limits);
    }

    // Gives the constraints that the solve took up or set aside their weights back.
    void release() { restore_weights(team, head, constraints); }

    // As for the shared shifts: the word is used only for a ray that holds up. There is no point to have residuals.
    void finish_ray(int64_t r, int64_t i) {
        scatter_duals(team, head, work.set, work.low);
        const Certificate ray = certify_ray(team, head, constraints, work.low, work.combined, work.support);
        finish(r, i, ray.proves(kExact) ? kInfeasible : kInaccurate, INFINITY, {0, 0, 0, 0, ray.lower, INFINITY});
    }

    // s is A'lambda by definition here, so dual feasibility and stationarity hold; the rest is read off the products.
    Certificate evaluate() {
        const ActiveSet& set = work.set;
        const double rounding = relative_rounding(head);
        double value = 0, size = 0;
        for (int a = 0; a < set.size; ++a) {
            value += set.lambda[a] * constraints.rho[set.index[a]];
            size += std::fabs(set.lambda[a] * constraints.rho[set.index[a]]);
        }
        Certificate certificate{0, 0, 0, 0, 0, INFINITY};
        for (int j = 0; j < head.classes; ++j) {
            const double length = constraints.length[j] * set.norm;
            work.low[j] = set.products[j] - rounding * length;
            if (constraints.norm2[j] == 0) continue;
            const double missing = positive(constraints.rho[j] - set.products[j]);
            const double violation = ratio(missing, std::fabs(constraints.rho[j]) + length);
            if (!(violation <= certificate.primal)) certificate.primal = violation;
        }
        certificate.gap = ratio(std::fabs(set.norm * set.norm - value), set.norm * set.norm + size);
        certificate.lower = set.norm > 0 ? positive(value - rounding * size) / (set.norm * (1 + rounding)) : 0.0;
        const double t = feasible_multiple(team, head, constraints, work.low);
        certificate.upper = upper_bound(t, set.norm, rounding);
        return certificate;
    }

    void finish(int64_t r, int64_t i, int8_t status, double norm, const Certificate& certificate) {
        const int64_t at = i * args.count + r;
        const bool overflows = status == kOptimal && !(T(norm) < T(INFINITY));
        static_cast<T*>(args.norms)[at] = T(norm);
        args.status[at] = overflows ? int8_t(kInaccurate) : status;
        fold(summary + r, args.count, certificate);
        if (args.perturbations == nullptr) return;
        T* out = static_cast<T*>(args.perturbations) + at * args.dim;
        const bool none = !(norm < INFINITY);
        if (!none) combine_active(team, head, constraints, work);
        for (int x = 0; x < head.dim; ++x) out[x] = none ? T(NAN) : T(work.point[x]);
    }
};

template <class T>
void solve_typed(const SampleSolve& args) {
    const int64_t blocks = (args.n + kBlock - 1) / kBlock;
    const int threads = args.n * args.count * args.classes < 100'000 ? 1 : args.threads;
    for (int worker = 0; worker < threads; ++worker) start_summary(SampleWorker<T>(args, worker).summary, args.count);
    auto task = [&](int worker, int64_t t) {
        const int64_t first = t % blocks * kBlock;
        SampleWorker<T>(args, worker).block(t / blocks, first, first + kBlock < args.n ? first + kBlock : args.n);
    };
    parallel_for(threads, blocks * args.count, task);
    for (int worker = 0; worker < threads; ++worker) {
        const double* one = SampleWorker<T>(args, worker).summary;
        const int64_t K = args.count;
        for (int64_t r = 0; r < K; ++r)
            fold(args.certificate + r, K,
                 {one[r], one[K + r], one[2 * K + r], one[3 * K + r], one[4 * K + r], one[5 * K + r]});
    }
}

}  // namespace

int64_t sample_workspace_bytes(int64_t classes, int64_t dim, int64_t count, int threads) {
    return threads * worker_size(classes, dim, count) * int64_t(sizeof(double));
}

void solve_samples(const SampleSolve& args) {
    args.scalar == Scalar::f64 ? solve_typed<double>(args) : solve_typed<float>(args);
}

}  // namespace tacfast::cpu::TACFAST_ISA
