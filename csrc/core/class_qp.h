// One class from its right-hand sides to its perturbation, multipliers, status and certificate.
#pragma once

#include "core/certificate.h"
#include "core/gram_geometry.h"
#include "core/row_geometry.h"

TACFAST_CORE_BEGIN

// Scratch of one team, and the arrays that outlive the solve of one class.
struct Work {
    ActiveSet set;
    double* scratch;   // (capacity)
    double* basis;     // basis_size(...)
    double* point;     // (stride) s, before rounding
    double* normal;    // (stride)
    double* combined;  // (stride)
    double* low;       // (C)
    int* support;      // (C)

    static TACFAST_HD int capacity(int classes, int dim) { return packed((classes - 1 < dim ? classes - 1 : dim) + 1); }
    static TACFAST_HD int64_t basis_size(int classes, int dim, int stride) {
        const int64_t most = capacity(classes, dim), side = GramGeometry::side(most);
        const int64_t by_gram = side * side, by_rows = most * (stride + most);
        return by_gram > by_rows ? by_gram : by_rows;
    }
    // Doubles that carve() takes from its memory.
    static TACFAST_HD int64_t size(int classes, int dim, int stride) {
        const int64_t most = capacity(classes, dim), all = packed(classes);
        return 4 * most + 3 * all + 3 * stride + basis_size(classes, dim, stride);
    }
    static TACFAST_HD Work carve(double* memory, int classes, int dim, int stride) {
        const int64_t most = capacity(classes, dim), all = packed(classes);
        auto next = [&](int64_t length) {
            double* start = memory;
            memory += length;
            return start;
        };
        Work work;
        work.set.index = reinterpret_cast<int*>(next(most));
        work.set.lambda = next(most);
        work.set.coef = next(most);
        work.scratch = next(most);
        work.set.products = next(all);
        work.low = next(all);
        work.support = reinterpret_cast<int*>(next(all));
        work.point = next(stride);
        work.normal = next(stride);
        work.combined = next(stride);
        work.basis = next(basis_size(classes, dim, stride));
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
    double* factor = work.basis + most * int64_t(head.stride);
    RowGeometry geometry{head, work.basis, factor, work.point, work.normal, work.scratch, most};
    restore_weights(team, head, c);
    return solve_active_set(team, head, geometry, c, work.set, limits);
}

// Through the Gram matrix where it can tell, else through the rows. Leaves s in work.point, unless infeasible.
template <class Team>
TACFAST_HD Outcome solve_constraints(const Team& team, const Head& head, const Constraints& c, bool hard, Work& work,
                                     const Limits& limits) {
    if (!hard) {
        GramGeometry geometry{head, work.basis, work.scratch};
        const Outcome outcome = solve_active_set(team, head, geometry, c, work.set, limits);
        if (outcome != Outcome::ambiguous) {
            combine_active(team, head, c, work);
            return outcome;
        }
    }
    return solve_by_rows(team, head, c, work, limits);
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
