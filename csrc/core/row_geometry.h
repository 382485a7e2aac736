// The active set seen through the rows of W themselves: slower, and accurate up to condition numbers that the Gram
// matrix squares out of reach (a class within 1e-9 of the hull of the others, rows that differ in the last digits).
//
// It keeps a QR factorisation of the active rows, a_i = sum of R[j, i] q_j over j <= i. Rows are made orthogonal in
// several passes when they come and turned by Givens rotations when one goes, so that Q stays orthonormal to the last
// digits whatever the rows are, and every product with it is backward stable.
#pragma once

#include "core/active_set.h"

TACFAST_CORE_BEGIN

struct RowGeometry {
    Head head;
    double* basis;    // Q, as many rows as the active set and one more, of head.stride
    double* factor;   // R by columns of `capacity`, as many as the active set and one more
    double* point;    // (d) s
    double* normal;   // (d) the part of a_p outside the span of the active rows
    double* scratch;  // (capacity)
    int capacity;

    static constexpr int kPasses = 3;
    // What is left of a row after its projection is rounding below this share of the terms.
    static constexpr double kRounding = 64 * 2.220446049250313e-16;

    TACFAST_HD const double* row(int j) const { return head.rows + j * int64_t(head.stride); }
    TACFAST_HD double* unit(int i) const { return basis + i * int64_t(head.stride); }
    TACFAST_HD double* column(int i) const { return factor + i * int64_t(capacity); }

    template <class Team>
    TACFAST_HD void reset(const Team& team) {
        team.each(head.dim, [&](int x) { point[x] = 0; });
        team.sync();
    }

    // Leaves what insert() needs in normal and in the next column of R.
    template <class Team>
    TACFAST_HD Projection project(const Team& team, const Constraints& c, ActiveSet& set, int p) {
        const int m = set.size;
        const double* wk = row(c.target);
        const double* wp = row(p);
        double* along = column(m);
        team.each(m, [&](int i) { along[i] = 0; });
        team.each(head.dim, [&](int x) { normal[x] = wk[x] - wp[x]; });
        team.sync();
        for (int pass = 0; pass < kPasses && m > 0; ++pass) {
            const double *q = basis, *rest = normal;
            const int64_t stride = head.stride;
            auto term = [=](int i, auto at) { return at(q + i * stride) * at(rest); };
            team.dots(m, head.dim, term, [&](int i, double product) {
                scratch[i] = product;
                along[i] += product;
            });
            team.sync();
            team.each(head.dim, [&](int x) {
                double left = normal[x];
                for (int i = 0; i < m; ++i) left -= scratch[i] * unit(i)[x];
                normal[x] = left;
            });
            team.sync();
        }
        team.each(m, [&](int i) { scratch[i] = along[i]; });
        substitute_back(team, m, set.coef);
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
        const double length = std::sqrt(distance2);
        team.each(head.dim, [&](int x) { unit(m)[x] = normal[x] / length; });
        if (team.rank() == 0) column(m)[m] = length;
        team.sync();
    }

    // Without column q the rest of R has entries below its diagonal, which rotations of neighbouring rows remove.
    template <class Team>
    TACFAST_HD void remove(const Team& team, ActiveSet& set, int q) {
        const int last = set.size - 1;
        team.each(set.size, [&](int i) {
            for (int j = q; j < last; ++j)
                if (i <= j + 1) column(j)[i] = column(j + 1)[i];
        });
        for (int i = q; i < last; ++i) {
            team.sync();
            const double a = column(i)[i], b = column(i)[i + 1], length = std::sqrt(a * a + b * b);
            const double cosine = a / length, sine = b / length;
            team.sync();
            team.each(last - i, [&](int t) {
                double* entries = column(i + t) + i;
                turn(cosine, sine, entries[0], entries[1]);
            });
            team.each(head.dim, [&](int x) { turn(cosine, sine, unit(i)[x], unit(i + 1)[x]); });
        }
        team.sync();
    }

    // The point s = Q y with R'y = rho, and its multipliers, R lambda = y.
    template <class Team>
    TACFAST_HD void solve(const Team& team, const Constraints& c, ActiveSet& set) {
        const int m = set.size;
        for (int i = 0; i < m; ++i) {
            const double* entries = column(i);
            const double sum = team.sum(i, [&](int j) { return entries[j] * scratch[j]; });
            if (team.rank() == 0) scratch[i] = (c.rho[set.index[i]] - sum) / entries[i];
            team.sync();
        }
        const double* rows = basis;
        const int64_t stride = head.stride;
        const double* share = scratch;
        team.combine(head.dim, m, 0, [=](int i, auto at) { return share[i] * at(rows + i * stride); }, point);
        team.sync();
        substitute_back(team, m, set.lambda);
    }

    template <class Team>
    TACFAST_HD void evaluate(const Team& team, const Constraints& c, ActiveSet& set) {
        const double* wk = row(c.target);
        const double* s = point;
        const double* rows = head.rows;
        const int64_t stride = head.stride;
        auto term = [=](int j, auto at) { return (at(wk) - at(rows + j * stride)) * at(s); };
        double* products = set.products;
        team.dots(head.classes, head.dim, term, [=](int j, double product) { products[j] = product; });
        set.norm = std::sqrt(team.sum(head.dim, [=](int x) { return s[x] * s[x]; }));
        team.sync();
    }

  private:
    TACFAST_HD static void turn(double cosine, double sine, double& first, double& second) {
        const double turned = cosine * first + sine * second;
        second = cosine * second - sine * first;
        first = turned;
    }

    // R x = scratch, which it uses up.
    template <class Team>
    TACFAST_HD void substitute_back(const Team& team, int m, double* x) const {
        for (int i = m - 1; i >= 0; --i) {
            team.sync();
            const double* entries = column(i);
            const double value = scratch[i] / entries[i];
            if (team.rank() == 0) x[i] = value;
            team.each(i, [&](int j) { scratch[j] -= entries[j] * value; });
        }
        team.sync();
    }
};

TACFAST_CORE_END
