// One class-wise QP as a backend runs it: from a row of the gap matrix to the outputs of ClassSolve.
#pragma once

#include "core/class_qp.h"

TACFAST_CORE_BEGIN

// T: the type of the gaps and of what is handed out. Everything else is float64.
template <class T, class Team, Effort effort>
class ClassTask {
  public:
    static constexpr Effort kEffort = effort;

    // Doubles of the two parts of its memory, see Work.
    static TACFAST_HD int64_t near_size(int64_t classes, int64_t dim) {
        return Work::near_size(int(classes), int(dim)) + kArrays * packed(int(classes));
    }
    static TACFAST_HD int64_t far_size(int64_t classes, int64_t dim) {
        return Work::far_size(int(classes), int(dim), int(padded_dim(dim)), effort);
    }

    TACFAST_HD ClassTask(const Team& team_, const ClassSolve& args_, double* near, double* far)
        : team(team_),
          args(args_),
          head(Head::of(args_.head)),
          limits{args_.max_iter, thorough || args_.max_active < kQuickActive ? args_.max_active : kQuickActive} {
        const int64_t C = packed(head.classes);
        constraints = {0, near, near + C, near + 2 * C, near + 3 * C};
        exact_duals = near + 4 * C;
        work = Work::carve(near + kArrays * C, far, head.classes, head.dim, head.stride);
    }

    // Target r of args.targets.
    TACFAST_HD void run(int64_t r) {
        row = r;
        iterations = 0;
        const int64_t k = args.targets[r];
        work.set.size = work.set.iterations = 0;
        if (k < 0 || k >= head.classes || !(head.longest < INFINITY)) return finish_invalid();
        constraints.target = int(k);
        const T* gaps = static_cast<const T*>(args.gaps) + k * args.gap_stride_k;
        const Screening screening = screen(team, head, constraints, args.head.bias(), args.margin,
                                           [&](int j) { return double(gaps[j * args.gap_stride_j]); });
        const double* rho = constraints.rho;
        if (!(team.sum(head.classes, [=](int j) { return 0 * rho[j]; }) == 0)) return finish_invalid();
        if constexpr (thorough) {
            if (screening.clash >= 0) return finish_clash(screening.clash);
            solve(screening.hard);
        } else {
            const bool easy = screening.clash < 0 && !screening.hard;
            finish_quick(easy ? solve_quickly() : Outcome::ambiguous);
        }
    }

    // Whether a thorough task could end otherwise than with this status.
    static TACFAST_HD bool is_open(int8_t status) {
        return status == kCrowded || status == kMaxIter || status == kInaccurate;
    }

  private:
    static constexpr bool thorough = effort == Effort::thorough;
    static constexpr int kArrays = 5;  // rho, norm2, length, weight, and the duals before rounding

    const Team& team;
    const ClassSolve& args;
    const Head head;
    const Limits limits;
    Constraints constraints;
    double* exact_duals;  // (C) before rounding
    Work work;
    int64_t row = 0;
    int iterations = 0;  // for this row, through the Gram matrix and the rows together

    TACFAST_HD T* perturbation() const { return static_cast<T*>(args.perturbations) + row * args.head.dim; }
    TACFAST_HD T* duals() const { return static_cast<T*>(args.duals) + row * args.head.classes; }
    static TACFAST_HD Certificate unknown() { return {NAN, NAN, NAN, NAN, 0, INFINITY}; }

    // Through the Gram matrix where it can tell and the certificate agrees, else through the rows.
    TACFAST_HD void solve(bool by_rows) {
        bool guessed = false;
        if (const double* guess = plausible_guess()) {
            adopt_support(team, head, constraints, guess, work.set);
            guessed = take_guess(guess);
        }
        for (;;) {
            const Outcome outcome = guessed   ? Outcome::settled
                                    : by_rows ? solve_by_rows(team, head, constraints, work, limits)
                                              : solve_by_gram(team, head, constraints, work, limits);
            guessed = false;
            iterations += work.set.iterations;
            if (outcome == Outcome::infeasible) return finish_ray();
            if (outcome != Outcome::ambiguous) {
                write(false, 0);
                if (outcome == Outcome::crowded) return finish(kCrowded, unknown());
                const Certificate certificate = certify(perturbation(), duals());
                const StatusCode failed = outcome == Outcome::settled ? kInaccurate : kMaxIter;
                if (certificate.within(args.tol)) return finish(kOptimal, certificate);
                if (by_rows || failed == kMaxIter) return finish(failed, certificate);
                adopt_support(team, head, constraints, exact_duals, work.set);
            }
            by_rows = true;
        }
    }

    TACFAST_HD Outcome solve_quickly() {
        if (const double* guess = plausible_guess()) adopt_support(team, head, constraints, guess, work.set);
        return solve_by_gram(team, head, constraints, work, limits);
    }

    // The multipliers to start from, if there are any of which at most one in ten is negative: dropping many
    // constraints takes longer than taking up few.
    TACFAST_HD const double* plausible_guess() const {
        if (args.guess == nullptr) return nullptr;
        const double* guess = args.guess + row * head.classes;
        const double negative = team.sum(head.classes, [=](int j) { return guess[j] < 0 ? 1.0 : 0.0; });
        return 10 * negative <= head.classes ? guess : nullptr;
    }

    // Whether the guess is the solution already; then it is in the active set.
    TACFAST_HD bool take_guess(const double* guess) {
        team.each(work.set.size, [&](int i) { work.set.lambda[i] = guess[work.set.index[i]]; });
        team.sync();
        combine_active(team, head, constraints, work);
        GramGeometry(head, work.first, work.wide, work.scratch).evaluate(team, constraints, work.set);
        scatter_duals(team, head, work.set, exact_duals);
        return certify(work.point, exact_duals).within(kExact);
    }

    // Of what was last solved.
    template <class U>
    TACFAST_HD Certificate certify(const U* s, const U* lambda) const {
        const double multipliers = team.sum(work.set.size, [&](int i) { return std::fabs(work.set.lambda[i]); });
        return core::certify(team, head, constraints, s, lambda, {work.point, work.set.products, multipliers},
                             work.combined, work.low, work.support);
    }

    // The results, rounded to T. `none`: there is no perturbation, and its norm is `norm`.
    TACFAST_HD void write(bool none, double norm) {
        scatter_duals(team, head, work.set, exact_duals);
        team.each(head.classes, [&](int j) { duals()[j] = T(exact_duals[j]); });
        T* TACFAST_RESTRICT s = perturbation();
        const double* TACFAST_RESTRICT point = work.point;
        if (none) {
            team.each(head.dim, [=](int x) { s[x] = T(NAN); });
        } else {
            team.each(head.dim, [=](int x) { s[x] = T(point[x]); });
            norm = std::sqrt(team.sum(head.dim, [=](int x) { return double(s[x]) * double(s[x]); }));
        }
        if (team.rank() == 0) static_cast<T*>(args.norms)[row] = T(norm);
        team.sync();
    }

    TACFAST_HD void finish_invalid() {
        write(true, NAN);
        finish(kInvalidInput, unknown());
    }

    // What is not solved is left open.
    TACFAST_HD void finish_quick(Outcome outcome) {
        iterations = work.set.iterations;
        if (outcome != Outcome::settled) return finish(kCrowded, unknown());
        write(false, 0);
        const Certificate certificate = certify(perturbation(), duals());
        finish(certificate.within(args.tol) ? kOptimal : kInaccurate, certificate);
    }

    // A class with the target's row and a larger bias: its constraint alone is the ray.
    TACFAST_HD void finish_clash(int clash) {
        team.sync();
        if (team.rank() == 0) {
            work.set.index[0] = clash;
            work.set.lambda[0] = 1;
        }
        team.sync();
        work.set.size = 1;
        finish_ray();
    }

    // The word "infeasible" is used only for a ray that holds up in float64; the certificate is of the rounded one.
    TACFAST_HD void finish_ray() {
        write(true, INFINITY);
        const Certificate exact = certify_ray(team, head, constraints, exact_duals, work.combined, work.support);
        finish(exact.proves(kExact) ? kInfeasible : kInaccurate,
               certify_ray(team, head, constraints, duals(), work.combined, work.support));
    }

    TACFAST_HD void finish(StatusCode status, const Certificate& certificate) {
        if (team.rank() == 0) {
            const double values[kCertificateFields] = {certificate.primal, certificate.dual,  certificate.stationarity,
                                                       certificate.gap,    certificate.lower, certificate.upper};
            for (int f = 0; f < kCertificateFields; ++f) args.certificate[f * args.count + row] = values[f];
            args.status[row] = status;
            args.iterations[row] = iterations;
        }
        team.sync();
    }
};

TACFAST_CORE_END
