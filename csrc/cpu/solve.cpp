// The class-wise QPs on the CPU: classes in small groups, whose certificates share one pass over W.
#include "core/class_qp.h"
#include "cpu/kernels.h"
#include "cpu/products.h"
#include "cpu/threads.h"

namespace tacfast::cpu::TACFAST_ISA {
namespace {

using namespace core;

constexpr int kGroup = 8;
constexpr SerialTeam team;

int64_t padded(int64_t count) { return padded_dim(count); }

constexpr int kClassArrays = 5;  // of a slot: rho, norm2, length, weight, and the duals before rounding

// Doubles of one class in flight: those, u = W s, and s as handed out.
int64_t slot_size(int64_t classes, int64_t dim) { return (kClassArrays + 1) * padded(classes) + padded(dim); }

int64_t worker_size(int64_t classes, int64_t dim) {
    return Work::size(int(classes), int(dim), int(padded_dim(dim))) + kGroup * slot_size(classes, dim);
}

struct Slot {
    Constraints constraints;
    double* duals;  // (C) before rounding
    Outcome outcome;
    bool invalid;  // the right-hand sides are not finite
    bool clash;    // infeasible because of a row equal to the target's
};

template <class T>
class Worker {
  public:
    Worker(const ClassSolve& args_, int worker)
        : args(args_),
          head{args.rows, args.gram, int(args.classes), int(args.dim), int(padded_dim(args.dim)), args.longest},
          limits{args.max_iter, args.max_active} {
        double* memory = static_cast<double*>(args.workspace) + worker * worker_size(args.classes, args.dim);
        const int64_t C = padded(args.classes);
        points = memory;
        images = points + kGroup * head.stride;
        slot_memory = images + kGroup * C;
        work = Work::carve(slot_memory + kGroup * kClassArrays * C, head.classes, head.dim, head.stride);
    }

    void group(int64_t first, int count) {
        Slot slots[kGroup];
        for (int i = 0; i < count; ++i) {
            slots[i] = open(i, first + i);
            if (!slots[i].invalid) solve(slots[i], i, first + i);
            store(slots[i], i, first + i);
        }
        row_products(points, count, args.centred, head.classes, head.stride, images, padded(args.classes));
        for (int i = 0; i < count; ++i) close(slots[i], i, first + i);
    }

  private:
    const ClassSolve& args;
    const Head head;
    const Limits limits;
    Work work;
    double* points;       // (kGroup, stride) s as handed out
    double* images;       // (kGroup, padded C) u = W s, of the centred W
    double* slot_memory;  // (kGroup, kClassArrays, padded C)

    T* perturbation(int64_t r) const { return static_cast<T*>(args.perturbations) + r * args.dim; }
    T* duals(int64_t r) const { return static_cast<T*>(args.duals) + r * args.classes; }
    double* point(int i) const { return points + i * int64_t(head.stride); }
    double* image(int i) const { return images + i * padded(args.classes); }

    Slot open(int i, int64_t r) {
        const int64_t C = padded(args.classes);
        double* memory = slot_memory + i * kClassArrays * C;
        const int64_t k = args.targets[r];
        const T* gaps = static_cast<const T*>(args.gaps) + k * args.gap_strides[0];
        Slot slot{{int(k), memory, memory + C, memory + 2 * C, memory + 3 * C},
                  memory + 4 * C,
                  Outcome::settled,
                  false,
                  false};
        const Screening screening = screen(team, head, slot.constraints, args.bias, args.margin, args.same,
                                           [&](int j) { return double(gaps[j * args.gap_strides[1]]); });
        const double* rho = slot.constraints.rho;
        slot.invalid = !(team.sum(head.classes, [=](int j) { return 0 * rho[j]; }) == 0);
        work.set.size = 0;
        if (screening.clash >= 0) {
            work.set.size = 1;
            work.set.index[0] = screening.clash;
            work.set.lambda[0] = 1;
            slot.outcome = Outcome::infeasible;
            slot.clash = true;
        }
        hard = screening.hard;
        return slot;
    }

    void solve(Slot& slot, int i, int64_t r) {
        if (slot.clash) return;
        if (args.guess != nullptr) {
            const double* guess = args.guess + r * args.classes;
            adopt_support(team, head, slot.constraints, guess, work.set);
            if (take_guess(slot, guess, i)) return;
        }
        slot.outcome = solve_constraints(team, head, slot.constraints, hard, work, limits);
    }

    // Whether the guess is the solution already; then it is in the active set.
    bool take_guess(const Slot& slot, const double* guess, int i) {
        for (int a = 0; a < work.set.size; ++a) work.set.lambda[a] = guess[work.set.index[a]];
        combine_active(team, head, slot.constraints, work);
        scatter_duals(team, head, work.set, slot.duals);
        for (int x = head.dim; x < head.stride; ++x) work.point[x] = 0;
        row_products(work.point, 1, args.centred, head.classes, head.stride, image(i), padded(args.classes));
        return certify(team, head, slot.constraints, work.point, slot.duals, image(i), work.combined, work.low,
                       work.support)
            .within(kExact);
    }

    // Writes the results, rounded to T, and the rounded point for the certificate.
    void store(const Slot& slot, int i, int64_t r) {
        const bool none = slot.invalid || slot.outcome == Outcome::infeasible;
        scatter_duals(team, head, work.set, slot.duals);
        for (int j = 0; j < head.classes; ++j) duals(r)[j] = T(slot.duals[j]);
        T* TACFAST_RESTRICT rounded = perturbation(r);
        double* TACFAST_RESTRICT widened = point(i);
        for (int x = 0; x < head.dim; ++x) widened[x] = double(rounded[x] = none ? T(NAN) : T(work.point[x]));
        const double norm2 = team.sum(head.dim, [=](int x) { return widened[x] * widened[x]; });
        for (int x = head.dim; x < head.stride; ++x) point(i)[x] = 0;
        const double norm = slot.invalid ? NAN : none ? INFINITY : std::sqrt(norm2);
        static_cast<T*>(args.norms)[r] = T(norm);
    }

    void close(Slot& slot, int i, int64_t r) {
        if (slot.invalid) return finish(r, kInvalidInput, {NAN, NAN, NAN, NAN, 0, INFINITY});
        if (slot.outcome == Outcome::infeasible) return finish_ray(slot, r);
        if (slot.outcome == Outcome::crowded) return finish(r, kCrowded, {NAN, NAN, NAN, NAN, 0, INFINITY});
        Certificate certificate = evaluate(slot, i, r);
        if (!certificate.within(args.tol) && slot.outcome == Outcome::settled) {
            adopt_support(team, head, slot.constraints, slot.duals, work.set);
            slot.outcome = solve_by_rows(team, head, slot.constraints, work, limits);
            store(slot, i, r);
            if (slot.outcome == Outcome::infeasible) return finish_ray(slot, r);
            row_products(point(i), 1, args.centred, head.classes, head.stride, image(i), padded(args.classes));
            certificate = evaluate(slot, i, r);
        }
        const int8_t failed = slot.outcome == Outcome::settled ? kInaccurate : kMaxIter;
        finish(r, certificate.within(args.tol) ? int8_t(kOptimal) : failed, certificate);
    }

    Certificate evaluate(const Slot& slot, int i, int64_t r) {
        return certify(team, head, slot.constraints, perturbation(r), duals(r), image(i), work.combined, work.low,
                       work.support);
    }

    // The word "infeasible" is used only for a ray that holds up in float64; the certificate is of the rounded one.
    void finish_ray(const Slot& slot, int64_t r) {
        const Certificate exact = certify_ray(team, head, slot.constraints, slot.duals, work.combined, work.support);
        finish(r, exact.proves(kExact) ? kInfeasible : kInaccurate,
               certify_ray(team, head, slot.constraints, duals(r), work.combined, work.support));
    }

    void finish(int64_t r, int8_t status, const Certificate& certificate) {
        const double values[kCertificateFields] = {certificate.primal, certificate.dual,  certificate.stationarity,
                                                   certificate.gap,    certificate.lower, certificate.upper};
        for (int f = 0; f < kCertificateFields; ++f) args.certificate[f * args.count + r] = values[f];
        args.status[r] = status;
    }

    bool hard = false;
};

template <class T>
void solve_typed(const ClassSolve& args) {
    const int64_t groups = (args.count + kGroup - 1) / kGroup;
    // A group is worth a thread from about 50 microseconds of work.
    const int threads = args.count * args.classes * args.dim < 400'000 ? 1 : args.threads;
    auto task = [&](int worker, int64_t g) {
        const int64_t first = g * kGroup;
        const int count = int(first + kGroup < args.count ? kGroup : args.count - first);
        Worker<T>(args, worker).group(first, count);
    };
    parallel_for(threads, groups, task);
}

}  // namespace

int64_t solve_workspace_bytes(int64_t classes, int64_t dim, int threads) {
    return threads * worker_size(classes, dim) * int64_t(sizeof(double));
}

void solve_classes(const ClassSolve& args) {
    args.scalar == Scalar::f64 ? solve_typed<double>(args) : solve_typed<float>(args);
}

}  // namespace tacfast::cpu::TACFAST_ISA
