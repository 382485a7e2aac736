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
// constant covers the centring of rows up to ten times as long as the constraint (see along_constraint).
TACFAST_HD double relative_rounding(const Head& head) {
    return 4 * 2.220446049250313e-16 * (head.dim + head.classes + 32);
}

template <class Team, class F>
TACFAST_HD double maximum(const Team& team, int n, const F& f) {
    const Best best = team.largest(n, f);
    return best.index < 0 ? 0.0 : best.value;
}

// a_j's, given u = W s for the centred W. Where w_k - w_j cancels, the difference is taken first.
template <class T>
TACFAST_HD double along_constraint(const Head& head, const Constraints& c, const T* s, const double* u, int j) {
    const int k = c.target;
    if (c.norm2[j] > 1e-2 * head.longest * head.longest) return u[k] - u[j];
    const double* wk = head.rows + k * int64_t(head.stride);
    const double* wj = head.rows + j * int64_t(head.stride);
    return SerialTeam{}.sum(head.dim, [&](int x) { return (wk[x] - wj[x]) * double(s[x]); });
}

// The factor t of the upper bound; infinite if no multiple of s is known to be feasible. `low[j]` is a lower bound of
// a_j's.
template <class Team>
TACFAST_HD double feasible_multiple(const Team& team, const Head& head, const Constraints& c, const double* low) {
    const double t = maximum(team, head.classes, [&](int j) {
        if (c.norm2[j] == 0 || c.rho[j] <= 0) return 0.0;
        return low[j] > 0 ? c.rho[j] / low[j] : INFINITY;
    });
    const Best missed = team.largest(head.classes, [&](int j) {
        return c.norm2[j] > 0 && c.rho[j] <= 0 && t * low[j] < c.rho[j] ? 1.0 : -INFINITY;
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

// Leaves A'lambda in `combined`, of d entries.
template <class Team, class T>
TACFAST_HD DualSums sum_duals(const Team& team, const Head& head, const Constraints& c, const T* lambda,
                              double* combined) {
    const double* wk = head.rows + c.target * int64_t(head.stride);
    team.each(head.dim, [&](int x) { combined[x] = 0; });
    for (int j = 0; j < head.classes; ++j) {
        const double factor = double(lambda[j]);
        if (factor == 0 || c.norm2[j] == 0) continue;
        const double* wj = head.rows + j * int64_t(head.stride);
        team.each(head.dim, [&](int x) { combined[x] += factor * (wk[x] - wj[x]); });
    }
    team.sync();
    const int C = head.classes, d = head.dim;
    DualSums sums;
    sums.length = std::sqrt(team.sum(d, [&](int x) { return combined[x] * combined[x]; }));
    sums.terms = team.sum(C, [&](int j) { return std::fabs(double(lambda[j])) * std::sqrt(c.norm2[j]); });
    sums.value = team.sum(C, [&](int j) { return double(lambda[j]) * c.rho[j]; });
    sums.size = team.sum(C, [&](int j) { return std::fabs(double(lambda[j]) * c.rho[j]); });
    sums.lowest = maximum(team, C, [&](int j) { return positive(-double(lambda[j])) * std::sqrt(c.norm2[j]); });
    return sums;
}

// s has d entries, lambda C, u = W s (W centred) C; `combined` (d) and `low` (C) are scratch. The constraint values are
// widened by what their own rounding can amount to, so that the bounds hold as printed.
template <class Team, class T>
TACFAST_HD Certificate certify(const Team& team, const Head& head, const Constraints& c, const T* s, const T* lambda,
                               const double* u, double* combined, double* low) {
    const DualSums sums = sum_duals(team, head, c, lambda, combined);
    const double rounding = relative_rounding(head);
    const double norm2 = team.sum(head.dim, [&](int x) { return double(s[x]) * double(s[x]); });
    const double norm = std::sqrt(norm2);
    team.each(head.classes, [&](int j) { low[j] = c.norm2[j] > 0 ? along_constraint(head, c, s, u, j) : 0.0; });
    team.sync();
    Certificate result;
    // A NaN must not hide behind a comparison that is false.
    const Best worst = team.largest(head.classes, [&](int j) {
        if (c.norm2[j] == 0) return 0.0;
        const double violation = ratio(positive(c.rho[j] - low[j]), std::fabs(c.rho[j]) + std::sqrt(c.norm2[j]) * norm);
        return low[j] == low[j] ? violation : INFINITY;
    });
    result.primal = worst.value;
    result.dual = ratio(sums.lowest, sums.terms);
    const double missing2 = team.sum(head.dim, [&](int x) {
        const double missing = double(s[x]) - combined[x];
        return missing * missing;
    });
    result.stationarity = ratio(std::sqrt(missing2), sums.terms);
    result.gap = ratio(std::fabs(norm2 - sums.value), norm2 + sums.size);
    const double value = sums.value - rounding * sums.size;
    result.lower = sums.lowest > 0 || !(value > 0) ? 0.0 : value / (sums.length + rounding * sums.terms);
    team.each(head.classes, [&](int j) { low[j] -= rounding * std::sqrt(c.norm2[j]) * norm; });
    team.sync();
    const double t = feasible_multiple(team, head, c, low);
    result.upper = upper_bound(t, norm, rounding);
    return result;
}

// What remains of the certificate when there is no point: the multipliers are a ray, A'lambda = 0 and rho'lambda > 0.
template <class Team, class T>
TACFAST_HD Certificate certify_ray(const Team& team, const Head& head, const Constraints& c, const T* lambda,
                                   double* combined) {
    const DualSums sums = sum_duals(team, head, c, lambda, combined);
    const double rounding = relative_rounding(head);
    const double value = sums.value - rounding * sums.size;
    const double reach = value > 0 ? value / (sums.length + rounding * sums.terms) : 0.0;
    return {NAN, ratio(sums.lowest, sums.terms), ratio(sums.length, sums.terms), NAN, reach, INFINITY};
}

TACFAST_CORE_END
