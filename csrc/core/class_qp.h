// One class from its right-hand sides to its perturbation, multipliers, status and certificate.
#pragma once

#include "core/certificate.h"
#include "core/gram_geometry.h"
#include "core/row_geometry.h"

TACFAST_CORE_BEGIN

// How much a task is for. A GPU solves nearly everything by quick tasks, in little memory and by little code, and what
// they leave open once more by thorough ones. A CPU has no need of quick ones.
enum class Effort : int { quick, thorough };
constexpr int kQuickActive = 128;  // the largest active set of a quick task

// Scratch of one team, and the arrays that outlive the solve of one class: what every step touches, which a GPU keeps
// in shared memory, and the rest.
struct Work {
    ActiveSet set;
    double* scratch;   // (capacity)
    double* low;       // (C)
    int* support;      // (C)
    double* first;     // GramGeometry's inverse while it is small
    double* wide;      // and after that
    double* rows;      // RowGeometry's factorisation, in the place of `wide`
    double* point;     // (stride) s, before rounding
    double* normal;    // (stride)
    double* combined;  // (stride)

    static TACFAST_HD int capacity(int classes, int dim) { return packed((classes - 1 < dim ? classes - 1 : dim) + 1); }

    // Doubles of the arrays that every step touches.
    static TACFAST_HD int64_t near_size(int classes, int dim) {
        const int64_t most = capacity(classes, dim), side = GramGeometry::first_side(most);
        return 4 * most + 3 * packed(classes) + side * side;
    }
    // Doubles of the rest.
    static TACFAST_HD int64_t far_size(int classes, int dim, int stride, Effort effort) {
        const bool thorough = effort == Effort::thorough;
        const int64_t most = capacity(classes, dim);
        const int64_t side = GramGeometry::side(thorough || most < kQuickActive ? most : kQuickActive);
        const int64_t by_gram = side * side, by_rows = thorough ? most * (stride + most) : 0;
        return 3 * stride + (by_gram > by_rows ? by_gram : by_rows);
    }
    static TACFAST_HD Work carve(double* near, double* far, int classes, int dim, int stride) {
        const int64_t most = capacity(classes, dim), all = packed(classes), side = GramGeometry::first_side(most);
        auto next = [&](double*& memory, int64_t length) {
            double* start = memory;
            memory += length;
            return start;
        };
        Work work;
        work.set.index = reinterpret_cast<int*>(next(near, most));
        work.set.lambda = next(near, most);
        work.set.coef = next(near, most);
        work.scratch = next(near, most);
        work.set.products = next(near, all);
        work.low = next(near, all);
        work.support = reinterpret_cast<int*>(next(near, all));
        work.first = next(near, side * side);
        work.point = next(far, stride);
        work.normal = next(far, stride);
        work.combined = next(far, stride);
        work.wide = far;
        work.rows = far;
        work.set.size = 0;
        work.set.iterations = 0;
        work.set.norm = 0;
        return work;
    }
};

// s = A'lambda over the active set.
template <class Team>
TACFAST_HD void combine_active(const Team& team, const Head& head, const Constraints& c, const Work& work) {
    combine_rows(team, head, c, work.set.index, work.set.size, [&](int i) { return work.set.lambda[i]; }, work.point);
}

// Undoes what a solve did to the weights, so that another can start.
template <class Team>
TACFAST_HD void restore_weights(const Team& team, const Head& head, const Constraints& c) {
    team.sync();
    team.each(head.classes, [&](int j) { c.weight[j] = c.norm2[j] > 0 ? 1 / c.length[j] : 0.0; });
    team.sync();
}

// Through the rows, from the active set that the solve before this one ended with.
template <class Team>
TACFAST_HD Outcome solve_by_rows(const Team& team, const Head& head, const Constraints& c, Work& work,
                                 const Limits& limits) {
    const int most = Work::capacity(head.classes, head.dim);
    double* factor = work.rows + most * int64_t(head.stride);
    RowGeometry geometry{head, work.rows, factor, work.point, work.normal, work.scratch, most};
    restore_weights(team, head, c);
    return solve_active_set(team, head, geometry, c, work.set, limits);
}

// Through the Gram matrix. Leaves s in work.point, unless the outcome is ambiguous.
template <class Team>
TACFAST_HD Outcome solve_by_gram(const Team& team, const Head& head, const Constraints& c, Work& work,
                                 const Limits& limits) {
    GramGeometry geometry(head, work.first, work.wide, work.scratch);
    const Outcome outcome = solve_active_set(team, head, geometry, c, work.set, limits);
    if (outcome != Outcome::ambiguous) combine_active(team, head, c, work);
    return outcome;
}

// The multipliers of all classes, from those of the active set.
template <class Team, class T>
TACFAST_HD void scatter_duals(const Team& team, const Head& head, const ActiveSet& set, T* duals) {
    team.each(head.classes, [&](int j) { duals[j] = T(0); });
    team.sync();
    team.each(set.size, [&](int i) { duals[set.index[i]] = T(set.lambda[i] > 0 ? set.lambda[i] : 0.0); });
    team.sync();
}

// Takes the positive entries of a guess as the active set to start from.
template <class Team>
TACFAST_HD void adopt_support(const Team& team, const Head& head, const Constraints& c, const double* guess,
                              ActiveSet& set) {
    const int most = head.classes - 1 < head.dim ? head.classes - 1 : head.dim;
    int size = 0;
    for (int j = 0; j < head.classes && size < most; ++j) {
        if (!(guess[j] > 0) || c.norm2[j] == 0) continue;
        if (team.rank() == 0) set.index[size] = j;
        ++size;
    }
    team.sync();
    set.size = size;
}

TACFAST_CORE_END
