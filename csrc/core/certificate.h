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

// What a solve knows of a point before it was rounded to be handed out.
struct Unrounded {
    const double* point;     // (d)
    const double* products;  // (C) a_j'point, to within the rounding of the Gram matrix
    double multipliers;      // the sum of |lambda|
};

// low[j] <= a_j's + its own rounding, with equality unless the constraint holds by more than what the rounding of s and
// of the Gram matrix can amount to: few do not, and only for those a_j's is summed. 0 for constraints left out.
// `list` (C) is scratch.
template <class Team, class T>
TACFAST_PART void along_constraints(const Team& team, const Head& head, const Constraints& c, const T* s, double norm,
                                    const Unrounded& before, double* TACFAST_RESTRICT low, int* list) {
    const double* TACFAST_RESTRICT rho = c.rho;
    const double* TACFAST_RESTRICT norm2 = c.norm2;
    const double* TACFAST_RESTRICT length = c.length;
    const double* TACFAST_RESTRICT products = before.products;
    const double* TACFAST_RESTRICT point = before.point;
    const double rounding = relative_rounding(head);
    const double moved2 = team.sum(head.dim, [=](int x) {
        const double moved = double(s[x]) - point[x];
        return moved * moved;
    });
    const double along = 2 * (std::sqrt(moved2) + rounding * norm);
    const double of_gram = 16 * rounding * head.longest * head.longest * before.multipliers;
    team.each(head.classes, [=](int j) {
        const double far = products[j] - (along * length[j] + of_gram);
        low[j] = norm2[j] == 0 ? 0.0 : far > rho[j] ? far : NAN;
    });
    const double* wk = head.rows + c.target * int64_t(head.stride);
    const int near = team.collect(head.classes, [=](int j) { return low[j] != low[j]; }, list);
    const double* rows = head.rows;
    const int64_t stride = head.stride;
    auto term = [=](int i, auto at) { return (at(wk) - at(rows + list[i] * stride)) * at(s); };
    team.dots(near, head.dim, term, [=](int i, double product) { low[list[i]] = product; });
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

// Leaves A'lambda in `combined`, of d entries; `support` has C entries, for the constraints with a multiplier.
template <class Team, class T>
TACFAST_PART DualSums sum_duals(const Team& team, const Head& head, const Constraints& c, const T* lambda,
                                double* combined, int* support) {
    const int count = team.collect(head.classes, [=](int j) { return lambda[j] != 0; }, support);
    auto multiplier = [=](int i) { return double(lambda[support[i]]); };
    auto rho = [=](int i) { return c.rho[support[i]]; };
    auto length = [=](int i) { return c.length[support[i]]; };
    auto kept = [=](int i) { return length(i) > 0 ? multiplier(i) : 0.0; };
    combine_rows(team, head, c, support, count, kept, combined);
    DualSums sums;
    sums.length = std::sqrt(team.sum(head.dim, [=](int x) { return combined[x] * combined[x]; }));
    sums.terms = team.sum(count, [=](int i) { return std::fabs(multiplier(i)) * length(i); });
    sums.value = team.sum(count, [=](int i) { return multiplier(i) * rho(i); });
    sums.size = team.sum(count, [=](int i) { return std::fabs(multiplier(i) * rho(i)); });
    sums.lowest = maximum(team, count, [=](int i) { return positive(-multiplier(i)) * length(i); });
    return sums;
}

// s has d entries, lambda C; `combined` (d), `low` (C) and `support` (C) are scratch. The constraint values are widened
// by what their own rounding can amount to, so that the bounds hold as printed.
template <class Team, class T>
TACFAST_PART Certificate certify(const Team& team, const Head& head, const Constraints& c, const T* s, const T* lambda,
                                 const Unrounded& before, double* combined, double* low, int* support) {
    const DualSums sums = sum_duals(team, head, c, lambda, combined, support);
    const double rounding = relative_rounding(head);
    const double norm2 = team.sum(head.dim, [=](int x) { return double(s[x]) * double(s[x]); });
    const double norm = std::sqrt(norm2);
    along_constraints(team, head, c, s, norm, before, low, support);
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
TACFAST_PART Certificate certify_ray(const Team& team, const Head& head, const Constraints& c, const T* lambda,
                                     double* combined, int* support) {
    const DualSums sums = sum_duals(team, head, c, lambda, combined, support);
    const double rounding = relative_rounding(head);
    const double value = sums.value - rounding * sums.size;
    const double reach = value > 0 ? value / (sums.length + rounding * sums.terms) : 0.0;
    return {NAN, ratio(sums.lowest, sums.terms), ratio(sums.length, sums.terms), NAN, reach, INFINITY};
}

TACFAST_CORE_END
