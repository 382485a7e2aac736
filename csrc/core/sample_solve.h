// The QP of one sample and class: the constraints of a class are screened once, for many samples.
#pragma once

#include "core/class_qp.h"

TACFAST_CORE_BEGIN

struct SampleResult {
    StatusCode status;
    double norm;
    Certificate certificate;
    int iterations = 0;  // through the Gram matrix and the rows together
};

// T: the type of the logits and of what is handed out. Everything else is float64.
template <class T, class Team, Effort effort>
class SampleTask {
  public:
    static constexpr Effort kEffort = effort;

    // Doubles of the two parts of its memory, see Work.
    static TACFAST_HD int64_t near_size(int64_t classes, int64_t dim) {
        return Work::near_size(int(classes), int(dim)) + kArrays * packed(int(classes));
    }
    static TACFAST_HD int64_t far_size(int64_t classes, int64_t dim) {
        return Work::far_size(int(classes), int(dim), int(padded_dim(dim)), effort);
    }

    TACFAST_HD SampleTask(const Team& team_, const SampleSolve& args_, double* near, double* far)
        : team(team_),
          args(args_),
          head(Head::of(args_.head)),
          limits{args_.max_iter,
                 thorough || args_.head.classes < kQuickActive ? int(args_.head.classes) : kQuickActive} {
        const int64_t C = packed(head.classes);
        constraints = {0, near, near + C, near + 2 * C, near + 3 * C};
        work = Work::carve(near + kArrays * C, far, head.classes, head.dim, head.stride);
    }

    // The samples that follow are sent to target r of args.targets.
    TACFAST_HD void choose(int64_t r) {
        row = r;
        const int64_t k = args.targets[r];
        known = k >= 0 && k < head.classes;
        constraints.target = known ? int(k) : 0;
        screening = screen(team, head, constraints, args.head.bias(), args.margin, [](int) { return 0.0; });
    }

    TACFAST_HD void run(int64_t i) {
        const T* logits = static_cast<const T*>(args.logits) + i * args.head.classes;
        const double own = double(logits[constraints.target]);
        const double* norm2 = constraints.norm2;
        double* rho = constraints.rho;
        team.each(head.classes, [&](int j) {
            if (norm2[j] > 0) rho[j] = double(logits[j]) - own + args.margin;
        });
        const bool finite =
            known && head.longest < INFINITY && team.sum(head.classes, [=](int j) { return 0 * rho[j]; }) == 0;
        const Best largest = team.largest(head.classes, [=](int j) { return norm2[j] > 0 ? rho[j] : -INFINITY; });
        work.set.size = 0;
        work.set.norm = 0;
        if (!finite) return finish(i, {kInvalidInput, NAN, {NAN, NAN, NAN, NAN, 0, INFINITY}});
        if (screening.clash >= 0) return finish(i, {kInfeasible, INFINITY, {0, 0, 0, 0, INFINITY, INFINITY}});
        if (!(largest.value > 0)) return finish(i, {kOptimal, 0, {0, 0, 0, 0, 0, 0}});
        finish(i, solve());
    }

    // Whether a thorough task could end otherwise than with this status.
    static TACFAST_HD bool is_open(int8_t status) { return status == kMaxIter || status == kInaccurate; }

    int64_t row = 0;           // the target that was chosen
    SampleResult result = {};  // of the last sample

  private:
    static constexpr bool thorough = effort == Effort::thorough;
    static constexpr int kArrays = 4;  // rho, norm2, length, weight

    const Team& team;
    const SampleSolve& args;
    const Head head;
    const Limits limits;
    Constraints constraints;
    Work work;
    Screening screening = {};
    bool known = false;  // whether the target is a class

    TACFAST_HD SampleResult solve() {
        SampleResult found = {};
        int iterations = 0;
        bool by_rows = screening.hard;
        if (!thorough && by_rows) return {kInaccurate, NAN, {NAN, NAN, NAN, NAN, 0, INFINITY}};
        for (;;) {
            Outcome outcome = Outcome::ambiguous;
            if (!by_rows) outcome = solve_gram();
            if constexpr (thorough)
                if (by_rows) outcome = solve_by_rows(team, head, constraints, work, limits);
            iterations += work.set.iterations;
            const Certificate certificate = certify();
            const bool settled = outcome == Outcome::settled;
            const bool solved = (settled || outcome == Outcome::stopped) && certificate.within(args.tol);
            found = {solved ? kOptimal : settled ? kInaccurate : kMaxIter, work.set.norm, certificate};
            const bool rows_may_help = outcome == Outcome::ambiguous || (settled && !solved);
            if (by_rows || !thorough || !rows_may_help) {
                if constexpr (thorough)
                    if (outcome == Outcome::infeasible) found = certify_infeasible();
                break;
            }
            by_rows = true;
        }
        restore_weights(team, head, constraints);
        found.iterations = iterations;
        return found;
    }

    TACFAST_HD Outcome solve_gram() {
        GramGeometry geometry(head, work.first, work.wide, work.scratch);
        return solve_active_set(team, head, geometry, constraints, work.set, limits);
    }

    // As for the shared shifts: the word is used only for a ray that holds up. There is no point to have residuals.
    TACFAST_HD SampleResult certify_infeasible() {
        scatter_duals(team, head, work.set, work.low);
        const Certificate ray = certify_ray(team, head, constraints, work.low, work.combined, work.support);
        return {ray.proves(kExact) ? kInfeasible : kInaccurate, INFINITY, {0, 0, 0, 0, ray.lower, INFINITY}};
    }

    // s is A'lambda by definition here, so dual feasibility and stationarity hold; the rest is read off the products.
    TACFAST_HD Certificate certify() {
        const ActiveSet& set = work.set;
        const double rounding = relative_rounding(head), norm = set.norm;
        const double* TACFAST_RESTRICT rho = constraints.rho;
        const double* TACFAST_RESTRICT norm2 = constraints.norm2;
        const double* TACFAST_RESTRICT length = constraints.length;
        const double* TACFAST_RESTRICT products = set.products;
        double* TACFAST_RESTRICT low = work.low;
        const double value = team.sum(set.size, [&](int a) { return set.lambda[a] * rho[set.index[a]]; });
        const double size = team.sum(set.size, [&](int a) { return std::fabs(set.lambda[a] * rho[set.index[a]]); });
        const Best worst = team.largest(head.classes, [=](int j) {
            const double violation = ratio(positive(rho[j] - products[j]), std::fabs(rho[j]) + length[j] * norm);
            return norm2[j] == 0 ? 0.0 : products[j] == products[j] ? violation : INFINITY;
        });
        team.each(head.classes, [=](int j) { low[j] = products[j] - rounding * length[j] * norm; });
        team.sync();
        const double t = feasible_multiple(team, head, constraints, low);
        Certificate certificate{worst.value, 0, 0, 0, 0, INFINITY};
        certificate.gap = ratio(std::fabs(norm * norm - value), norm * norm + size);
        certificate.lower = norm > 0 ? positive(value - rounding * size) / (norm * (1 + rounding)) : 0.0;
        certificate.upper = upper_bound(t, norm, rounding);
        return certificate;
    }

    TACFAST_HD void finish(int64_t i, const SampleResult& found) {
        result = found;
        const int64_t at = i * args.count + row;
        if (result.status == kOptimal && !(T(result.norm) < T(INFINITY))) result.status = kInaccurate;
        if (team.rank() == 0) {
            static_cast<T*>(args.norms)[at] = T(result.norm);
            args.status[at] = result.status;
            args.iterations[at] = result.iterations;
        }
        if (args.perturbations == nullptr) return;
        T* out = static_cast<T*>(args.perturbations) + at * args.head.dim;
        const bool none = !(result.norm < INFINITY);
        if (!none) combine_active(team, head, constraints, work);
        team.each(head.dim, [&](int x) { out[x] = none ? T(NAN) : T(work.point[x]); });
        team.sync();
    }
};

TACFAST_CORE_END
