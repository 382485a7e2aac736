// The active set seen through the rows of W themselves: slower, and accurate up to condition numbers that the Gram
// matrix squares out of reach (a class within 1e-9 of the hull of the others, rows that differ in the last digits).
//
// It keeps the dual basis N of the active rows: N_i lies in their span and N_i'a_j = 1 if i = j, else 0. A new row is
// made orthogonal to the active ones in several passes, so that the rounding of N does not add up.
#pragma once

#include "core/active_set.h"

TACFAST_CORE_BEGIN

struct RowGeometry {
    Head head;
    double* basis;   // N, as many rows as the active set, of head.stride
    double* point;   // (d) s
    double* normal;  // (d) the part of a_p outside the span of the active rows

    static constexpr int kCorrections = 3;
    // What is left of a row after its projection is rounding below this share of the terms.
    static constexpr double kRounding = 64 * 2.220446049250313e-16;

    TACFAST_HD const double* row(int j) const { return head.rows + j * int64_t(head.stride); }
    TACFAST_HD double* dual(int i) const { return basis + i * int64_t(head.stride); }

    TACFAST_HD double along(const double* wk, int j, const double* x) const {
        const double* wj = row(j);
        return SerialTeam{}.sum(head.dim, [&](int t) { return (wk[t] - wj[t]) * x[t]; });
    }
    TACFAST_HD double dot(const double* x, const double* y) const {
        return SerialTeam{}.sum(head.dim, [&](int t) { return x[t] * y[t]; });
    }

    template <class Team>
    TACFAST_HD void reset(const Team& team) {
        team.each(head.dim, [&](int x) { point[x] = 0; });
        team.sync();
    }

    template <class Team>
    TACFAST_HD Projection project(const Team& team, const Constraints& c, ActiveSet& set, int p) {
        const int m = set.size;
        const double* wk = row(c.target);
        const double* wp = row(p);
        team.each(m, [&](int i) { set.coef[i] = 0; });
        team.each(head.dim, [&](int x) { normal[x] = wk[x] - wp[x]; });
        team.sync();
        double* correction = dual(m);  // the row that insert() will fill
        for (int pass = 0; pass < kCorrections && m > 0; ++pass) {
            team.each(m, [&](int i) {
                correction[i] = dot(dual(i), normal);
                set.coef[i] += correction[i];
            });
            team.sync();
            subtract_active(team, c, set, correction, normal);
            team.sync();
        }
        const double distance2 = team.sum(head.dim, [&](int x) { return normal[x] * normal[x]; });
        const double terms = team.sum(m, [&](int i) { return std::fabs(set.coef[i]) * c.length[set.index[i]]; });
        const double rounding = kRounding * (c.length[p] + terms);
        return {m < head.dim && distance2 > rounding * rounding ? distance2 : 0.0, false};
    }

    template <class Team>
    TACFAST_HD void move(const Team& team, double step) {
        team.each(head.dim, [&](int x) { point[x] += step * normal[x]; });
        team.sync();
    }

    template <class Team>
    TACFAST_HD void insert(const Team& team, ActiveSet& set, int, double distance2) {
        const int m = set.size;
        double* added = dual(m);
        team.each(head.dim, [&](int x) {
            added[x] = normal[x] / distance2;
            for (int i = 0; i < m; ++i) dual(i)[x] -= set.coef[i] * added[x];
        });
        team.sync();
    }

    template <class Team>
    TACFAST_HD void remove(const Team& team, ActiveSet& set, int q) {
        const int last = set.size - 1;
        const double* gone = dual(q);
        const double norm2 = team.sum(head.dim, [&](int x) { return gone[x] * gone[x]; });
        team.each(set.size, [&](int i) { set.coef[i] = dot(dual(i), gone) / norm2; });
        team.sync();
        team.each(head.dim, [&](int x) {
            const double removed = dual(q)[x];
            for (int i = 0; i <= last; ++i) dual(i)[x] -= set.coef[i] * removed;
            dual(q)[x] = dual(last)[x];
        });
        team.sync();
    }

    // The point s = N'rho and its multipliers N s. A residual that is rounding, on the scale of |a||s|, is left alone:
    // this way |s|^2 = rho'lambda to the last digits, however large N is.
    template <class Team>
    TACFAST_HD void solve(const Team& team, const Constraints& c, ActiveSet& set) {
        const double* wk = row(c.target);
        reset(team);
        for (int pass = 0; pass <= kCorrections; ++pass) {
            team.each(set.size, [&](int i) { set.coef[i] = c.rho[set.index[i]] - along(wk, set.index[i], point); });
            const double norm = std::sqrt(team.sum(head.dim, [&](int x) { return point[x] * point[x]; }));
            const Best worst = team.largest(set.size, [&](int i) {
                const int j = set.index[i];
                return std::fabs(set.coef[i]) - kRounding * (std::fabs(c.rho[j]) + c.length[j] * norm);
            });
            if (!(worst.value > 0)) break;
            for (int i = 0; i < set.size; ++i) {
                const double residual = set.coef[i];
                team.each(head.dim, [&](int x) { point[x] += residual * dual(i)[x]; });
            }
            team.sync();
        }
        team.each(set.size, [&](int i) { set.lambda[i] = dot(dual(i), point); });
        team.sync();
    }

    template <class Team>
    TACFAST_HD void evaluate(const Team& team, const Constraints& c, ActiveSet& set) {
        const double* wk = row(c.target);
        team.each(head.classes, [&](int j) { set.products[j] = along(wk, j, point); });
        set.norm = std::sqrt(team.sum(head.dim, [&](int x) { return point[x] * point[x]; }));
        team.sync();
    }

  private:
    // x -= sum_i factor_i a_i over the active rows.
    template <class Team>
    TACFAST_HD void subtract_active(const Team& team, const Constraints& c, const ActiveSet& set, const double* factor,
                                    double* x) const {
        const double* wk = row(c.target);
        for (int i = 0; i < set.size; ++i) {
            const double f = factor[i];
            const double* wi = row(set.index[i]);
            team.each(head.dim, [&](int t) { x[t] -= f * (wk[t] - wi[t]); });
        }
    }
};

TACFAST_CORE_END
