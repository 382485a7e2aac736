// The QP of one sample and class: the constraints of a class are screened once, for many samples.
#pragma once

#include "core/class_qp.h"

TACFAST_CORE_BEGIN

struct SampleResult {
    StatusCode status;
    double norm;
    Certificate certificate;
};

// T: the type of the logits and of what is handed out. Everything else is float64.
template <class T, class Team>
class SampleTask {
  public:
    // Doubles of memory that one task needs.
    static TACFAST_HD int64_t size(int64_t classes, int64_t dim) {
        return Work::size(int(classes), int(dim), int(padded_dim(dim))) + kArrays * packed(int(classes));
    }

    TACFAST_HD SampleTask(const Team& team_, const SampleSolve& args_, double* memory)
        : team(team_), args(args_), head(Head::of(args_.head)), limits{args_.max_iter, int(args_.head.classes)} {
        const int64_t C = packed(head.classes);
        constraints = {0, memory, memory + C, memory + 2 * C, memory + 3 * C};
        work = Work::carve(memory + kArrays * C, head.classes, head.dim, head.stride);
    }

    // The samples that follow are sent to target r of args.targets.
    TACFAST_HD void choose(int64_t r) {
        row = r;
        constraints.target = int(args.targets[r]);
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
        const bool finite = team.sum(head.classes, [=](int j) { return 0 * rho[j]; }) == 0;
        const Best largest = team.largest(head.classes, [=](int j) { return norm2[j] > 0 ? rho[j] : -INFINITY; });
        work.set.size = 0;
        work.set.norm = 0;
        if (!finite) return finish(i, {kInvalidInput, NAN, {NAN, NAN, NAN, NAN, 0, INFINITY}});
        if (screening.clash >= 0) return finish(i, {kInfeasible, INFINITY, {0, 0, 0, 0, INFINITY, INFINITY}});
        if (!(largest.value > 0)) return finish(i, {kOptimal, 0, {0, 0, 0, 0, 0, 0}});
        finish(i, solve());
    }

    int64_t row = 0;           // the target that was chosen
    SampleResult result = {};  // of the last sample

  private:
    static constexpr int kArrays = 4;  // rho, norm2, length, weight

    const Team& team;
    const SampleSolve& args;
    const Head head;
    const Limits limits;
    Constraints constraints;
    Work work;
    Screening screening = {};

    TACFAST_HD SampleResult solve() {
        Outcome outcome = screening.hard ? Outcome::ambiguous : solve_by_gram();
        Certificate certificate = certify();
        if (outcome == Outcome::ambiguous || (outcome == Outcome::settled && !certificate.within(args.tol))) {
            outcome = solve_by_rows(team, head, constraints, work, limits);
            certificate = certify();
        }
        restore_weights(team, head, constraints);
        if (outcome == Outcome::infeasible) return certify_infeasible();
        const StatusCode failed = outcome == Outcome::settled ? kInaccurate : kMaxIter;
        return {certificate.within(args.tol) ? kOptimal : failed, work.set.norm, certificate};
    }

    TACFAST_HD Outcome solve_by_gram() {
        GramGeometry geometry{head, work.basis, work.scratch};
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
