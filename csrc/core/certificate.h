// How well a point and its multipliers solve the QP: scale-free residuals and rigorous bounds, in float64, evaluated on
// the values that are handed out, whatever type they were rounded to. 0/0 counts as 0.
#pragma once

#include "core/problem.h"

TACFAST_CORE_BEGIN

// To this accuracy a guess counts as the solution, and a ray as a proof.
constexpr double kExact = 1e-12;

struct Certificate {
    double primal;        // max_j (rho_j - a_j's)+ / (|rho_j| + |a_j||s|)
    double dual;          // max_j (-lambda_j)+ |a_j| / sum_l |lambda_l||a_l|
    double stationarity;  // |s - A'lambda| / sum_l |lambda_l||a_l|
    double gap;           // | |s|^2 - rho'lambda | / (|s|^2 + |rho|'|lambda|)
    double lower;         // rho'lambda / |A'lambda| <= |s*|
    double upper;         // t |s| >= |s*| for the smallest t that makes t s feasible, if there is one

    // Written so that a NaN fails.
    TACFAST_HD bool within(double tol) const {
        return primal <= tol && dual <= tol && stationarity <= tol && gap <= tol;
    }
    // Of certify_ray: whether the multipliers prove that there is no point.
    TACFAST_HD bool proves(double tol) const { return stationarity <= tol && dual == 0 && lower > 0; }
};

TACFAST_HD double ratio(double a, double b) { return a == 0 ? 0.0 : a / b; }
TACFAST_HD double positive(double x) { return x > 0 ? x : 0.0; }

// What the rounding of a sum over the constraints or the latent dimension can amount to, relative to its terms. The
// constant covers the centring of rows up to ten times as long as the constraint (see along_constraints).
TACFAST_HD double relative_rounding(const Head& head) {
    return 4 * 2.220446049250313e-16 * (head.dim + head.classes + 32);
}

template <class Team, class F>
TACFAST_HD double maximum(const Team& team, int n, const F& f) {
    const Best best = team.largest(n, f);
    return best.index < 0 ? 0.0 : best.value;
}

// values[j] = a_j's, or 0 for a constraint that is left out, given u = W s for the centred W. Where w_k - w_j cancels,
// the difference is taken first.
template <class Team, class T>
TACFAST_HD void along_constraints(const Team& team, const Head& head, const Constraints& c, const T* s,
                                  const double* TACFAST_RESTRICT u, double* TACFAST_RESTRICT values) {
    const double* TACFAST_RESTRICT norm2 = c.norm2;
    const double* wk = head.rows + c.target * int64_t(head.stride);
    const double at_target = u[c.target], cancels = 1e-2 * head.longest * head.longest;
    team.each(head.classes, [=](int j) { values[j] = norm2[j] > 0 ? at_target - u[j] : 0.0; });
    team.each(head.classes, [&](int j) {
        if (norm2[j] > cancels || norm2[j] == 0) return;
        const double* wj = head.rows + j * int64_t(head.stride);
        values[j] = SerialTeam{}.sum(head.dim, [&](int x) { return (wk[x] - wj[x]) * double(s[x]); });
    });
    team.sync();
}

// The factor t of the upper bound; infinite if no multiple of s is known to be feasible. `low[j]` is a lower bound of
// a_j's.
template <class Team>
TACFAST_HD double feasible_multiple(const Team& team, const Head& head, const Constraints& c, const double* low) {
    const double* TACFAST_RESTRICT rho = c.rho;
    const double* TACFAST_RESTRICT norm2 = c.norm2;
    const double t = maximum(team, head.classes, [=](int j) {
        const double multiple = low[j] > 0 ? rho[j] / low[j] : INFINITY;
        return ((norm2[j] > 0) & (rho[j] > 0)) ? multiple : 0.0;
    });
    const Best missed = team.largest(head.classes, [=](int j) {
        const bool holds = (norm2[j] == 0) | (rho[j] > 0) | (t * low[j] >= rho[j]);
        return holds ? -INFINITY : 1.0;
    });
    return missed.index < 0 ? t : INFINITY;
}

// t |s|, rounded up; the products inf * 0 and 0 * inf say what their infinity means.
TACFAST_HD double upper_bound(double t, double norm, double rounding) {
    if (t == 0) return 0;
    return t < INFINITY && norm < INFINITY ? t * norm * (1 + rounding) : INFINITY;
}

// Sums that run over the multipliers.
struct DualSums {
    double length;  // |A'lambda|
    double terms;   // sum_l |lambda_l||a_l|
    double value;   // rho'lambda
    double size;    // |rho|'|lambda|
    double lowest;  // max_j (-lambda_j)+ |a_j|
};

// Leaves A'lambda in `combined`, of d entries; `support` has C entries, for the constraints that it is summed over.
template <class Team, class T>
TACFAST_HD DualSums sum_duals(const Team& team, const Head& head, const Constraints& c, const T* lambda,
                              double* combined, int* support) {
    const double* TACFAST_RESTRICT norm2 = c.norm2;
    auto counts = [=](int j) { return int(lambda[j] != 0) & int(norm2[j] > 0); };
    const int count = int(team.sum(head.classes, [=](int j) { return double(counts(j)); }));
    if (team.rank() == 0)
        for (int j = 0, i = 0; i < count; ++j) {  // no branch: a value that does not count is overwritten
            support[i] = j;
            i += counts(j);
        }
    team.sync();
    combine_rows(team, head, c, support, count, [=](int i) { return double(lambda[support[i]]); }, combined);
    const int C = head.classes, d = head.dim;
    const double* TACFAST_RESTRICT rho = c.rho;
    const double* TACFAST_RESTRICT length = c.length;
    DualSums sums;
    sums.length = std::sqrt(team.sum(d, [=](int x) { return combined[x] * combined[x]; }));
    sums.terms = team.sum(C, [=](int j) { return std::fabs(double(lambda[j])) * length[j]; });
    sums.value = team.sum(C, [=](int j) { return double(lambda[j]) * rho[j]; });
    sums.size = team.sum(C, [=](int j) { return std::fabs(double(lambda[j]) * rho[j]); });
    sums.lowest = maximum(team, C, [=](int j) { return positive(-double(lambda[j])) * length[j]; });
    return sums;
}

// s has d entries, lambda C, u = W s (W centred) C; `combined` (d), `low` (C) and `support` (C) are scratch. The
// constraint values are widened by what their own rounding can amount to, so that the bounds hold as printed.
template <class Team, class T>
TACFAST_HD Certificate certify(const Team& team, const Head& head, const Constraints& c, const T* s, const T* lambda,
                               const double* u, double* combined, double* low, int* support) {
    const DualSums sums = sum_duals(team, head, c, lambda, combined, support);
    const double rounding = relative_rounding(head);
    const double norm2 = team.sum(head.dim, [=](int x) { return double(s[x]) * double(s[x]); });
    const double norm = std::sqrt(norm2);
    along_constraints(team, head, c, s, u, low);
    Certificate result;
    const double* TACFAST_RESTRICT rho = c.rho;
    const double* TACFAST_RESTRICT norm2s = c.norm2;
    const double* TACFAST_RESTRICT length = c.length;
    // A NaN must not hide behind a comparison that is false.
    const Best worst = team.largest(head.classes, [=](int j) {
        const double violation = ratio(positive(rho[j] - low[j]), std::fabs(rho[j]) + length[j] * norm);
        return norm2s[j] == 0 ? 0.0 : low[j] == low[j] ? violation : INFINITY;
    });
    result.primal = worst.value;
    result.dual = ratio(sums.lowest, sums.terms);
    const double missing2 = team.sum(head.dim, [=](int x) {
        const double missing = double(s[x]) - combined[x];
        return missing * missing;
    });
    result.stationarity = ratio(std::sqrt(missing2), sums.terms);
    result.gap = ratio(std::fabs(norm2 - sums.value), norm2 + sums.size);
    const double value = sums.value - rounding * sums.size;
    result.lower = sums.lowest > 0 || !(value > 0) ? 0.0 : value / (sums.length + rounding * sums.terms);
    team.each(head.classes, [=](int j) { low[j] -= rounding * length[j] * norm; });
    team.sync();
    const double t = feasible_multiple(team, head, c, low);
    result.upper = upper_bound(t, norm, rounding);
    return result;
}

// What remains of the certificate when there is no point: the multipliers are a ray, A'lambda = 0 and rho'lambda > 0.
template <class Team, class T>
TACFAST_HD Certificate certify_ray(const Team& team, const Head& head, const Constraints& c, const T* lambda,
                                   double* combined, int* support) {
    const DualSums sums = sum_duals(team, head, c, lambda, combined, support);
    const double rounding = relative_rounding(head);
    const double value = sums.value - rounding * sums.size;
    const double reach = value > 0 ? value / (sums.length + rounding * sums.terms) : 0.0;
    return {NAN, ratio(sums.lowest, sums.terms), ratio(sums.length, sums.terms), NAN, reach, INFINITY};
}

TACFAST_CORE_END
