// The dual active-set method of Goldfarb and Idnani (1983) for  min 1/2 |s|^2, a_j's >= rho_j.
//
// It starts at s = 0, takes up the most violated constraint, follows the dual until that constraint holds with
// equality, and on the way lets go of constraints whose multiplier reaches zero. Every point on the way is the solution
// for the constraints in the active set, so the dual objective only rises and the method is finite.
//
// What depends on how the constraints are represented is a Geometry (gram_geometry.h, row_geometry.h).
#pragma once

#include "core/problem.h"

TACFAST_CORE_BEGIN

enum class Outcome : int {
    settled,     // no constraint is violated
    infeasible,  // the multipliers hold a ray: A'lambda = 0, rho'lambda > 0
    stopped,     // out of iterations
    crowded,     // the active set outgrew max_active
    ambiguous,   // this geometry cannot tell whether a constraint depends on the active ones
};

// Arrays of one solve, owned by the caller. `capacity` = min(C - 1, d) + 1, rounded up to a multiple of kPack.
// Loops over the active set may run on to a multiple of this, so that vectors have no remainder: arrays of its size
// have room, and what they hold there is never looked at.
constexpr int kPack = 8;
TACFAST_HD constexpr int packed(int count) { return (count + kPack - 1) / kPack * kPack; }

struct ActiveSet {
    int* index;        // (capacity) the active constraints, in the order in which they came
    double* lambda;    // (capacity) their multipliers
    double* coef;      // (capacity) scratch: coefficients of a constraint in the active ones
    double* products;  // (C) a_j's
    int size;          //
    int iterations;    // steps so far: each takes up a constraint, lets go of one, or finds one implied or contradicted
    double norm;       // |s|
};

struct Limits {
    int max_iter;
    int max_active;
};

// A violation below this share of |rho_j| + |a_j||s| is rounding.
constexpr double kViolation = 1e-13;
// A ray must improve the dual by more than this share of its terms to be believed.
constexpr double kRay = 1e-12;

struct Projection {
    double distance2;  // squared distance of a_p from the span of the active constraints, 0 if it lies in it
    bool ambiguous;
};

// The constraint whose violation, as a distance, is the largest; index -1 if all hold.
template <class Team>
TACFAST_HD Best most_violated(const Team& team, const Head& head, const Constraints& c, const ActiveSet& set) {
    const double* TACFAST_RESTRICT rho = c.rho;
    const double* TACFAST_RESTRICT weight = c.weight;
    const double* TACFAST_RESTRICT products = set.products;
    const double rounding = kViolation * set.norm;
    const Best worst = team.largest(head.classes, [=](int j) {  // a constraint of weight 0 scores at most 0
        return (rho[j] - products[j] - kViolation * std::fabs(rho[j])) * weight[j] - rounding;
    });
    return worst.value > 0 ? worst : no_best();
}

// The multiplier that reaches zero first along -coef, as {-step, position}; index -1 if none does. A coefficient that
// is rounding next to the length of a_p does not count.
template <class Team>
TACFAST_HD Best first_blocking(const Team& team, const Constraints& c, const ActiveSet& set, double length) {
    return team.largest(set.size, [&](int i) {
        const double r = set.coef[i];
        const bool counts = r > 0 && r * c.length[set.index[i]] > 1e-13 * length;
        return counts ? (set.lambda[i] > 0 ? -set.lambda[i] / r : 0.0) : -INFINITY;
    });
}

// Whether the direction (1 for p, -coef for the active set) along which A'lambda does not change improves the dual by
// more than rounding.
template <class Team>
TACFAST_HD bool is_ray(const Team& team, const Constraints& c, const ActiveSet& set, int p, double violation) {
    const double terms = team.sum(set.size, [&](int i) { return std::fabs(set.coef[i] * c.rho[set.index[i]]); });
    return violation > kRay * (terms + std::fabs(c.rho[p]));
}

// Lets go of the constraint at position q; the others keep their order.
template <class Team, class Geometry>
TACFAST_HD void drop(const Team& team, Geometry& geometry, const Constraints& c, ActiveSet& set, int q) {
    geometry.remove(team, set, q);
    const int last = set.size - 1;
    team.sync();
    if (team.rank() == 0) {
        const int j = set.index[q];
        c.weight[j] = 1 / c.length[j];
        for (int i = q; i < last; ++i) {
            set.index[i] = set.index[i + 1];
            set.lambda[i] = set.lambda[i + 1];
        }
    }
    team.sync();
    set.size = last;
}

// Takes up constraint p, whose projection is in set.coef.
template <class Team, class Geometry>
TACFAST_HD void take(const Team& team, Geometry& geometry, const Constraints& c, ActiveSet& set, int p,
                     double distance2, double lambda) {
    geometry.insert(team, set, p, distance2);
    if (team.rank() == 0) {
        set.index[set.size] = p;
        set.lambda[set.size] = lambda;
        c.weight[p] = 0;  // an active constraint holds by construction; whatever it lacks is rounding
    }
    team.sync();
    ++set.size;
}

// Leaves the ray in the multipliers: 1 for p, -coef for the active set.
template <class Team>
TACFAST_HD void store_ray(const Team& team, ActiveSet& set, int p) {
    team.each(set.size, [&](int i) { set.lambda[i] = set.coef[i] < 0 ? -set.coef[i] : 0.0; });
    if (team.rank() == 0) {
        set.index[set.size] = p;
        set.lambda[set.size] = 1;
    }
    team.sync();
    ++set.size;
}

// Makes constraint p hold with equality.
template <class Team, class Geometry>
TACFAST_HD Outcome enforce(const Team& team, Geometry& geometry, const Constraints& c, ActiveSet& set, int p,
                           const Limits& limits) {
    const double length = c.length[p];
    double violation = c.rho[p] - set.products[p];
    double lambda = 0;
    for (;;) {
        if (set.iterations >= limits.max_iter) return Outcome::stopped;
        const Projection projection = geometry.project(team, c, set, p);
        if (projection.ambiguous) return Outcome::ambiguous;
        ++set.iterations;
        const Best blocking = first_blocking(team, c, set, length);
        const bool dependent = projection.distance2 == 0;
        if (dependent && blocking.index < 0) {
            if (is_ray(team, c, set, p, violation)) {
                store_ray(team, set, p);
                return Outcome::infeasible;
            }
            team.sync();
            if (team.rank() == 0) c.weight[p] = 0;  // implied by the active constraints, up to rounding
            team.sync();
            return Outcome::settled;
        }
        const double to_equality = dependent ? INFINITY : violation / projection.distance2;
        const double to_zero = blocking.index < 0 ? INFINITY : -blocking.value;
        const double step = to_equality < to_zero ? to_equality : to_zero;
        team.each(set.size, [&](int i) { set.lambda[i] -= step * set.coef[i]; });
        if (!dependent) geometry.move(team, step);
        lambda += step;
        if (to_equality <= to_zero) {
            if (set.size >= limits.max_active) {
                team.sync();  // the multipliers are read next
                return Outcome::crowded;
            }
            take(team, geometry, c, set, p, projection.distance2, lambda);
            return Outcome::settled;
        }
        violation -= step * projection.distance2;
        drop(team, geometry, c, set, blocking.index);
    }
}

// Raises the dual until no constraint is violated.
template <class Team, class Geometry>
TACFAST_PART Outcome ascend(const Team& team, const Head& head, Geometry& geometry, const Constraints& c,
                            ActiveSet& set, const Limits& limits) {
    for (;;) {
        geometry.evaluate(team, c, set);
        const Best worst = most_violated(team, head, c, set);
        if (worst.index < 0) return Outcome::settled;
        const Outcome outcome = enforce(team, geometry, c, set, worst.index, limits);
        if (outcome != Outcome::settled) return outcome;
    }
}

// Starts from a guess of the active set, set.index[0 .. set.size): factorises it afresh in that order, unless it just
// has been, leaves out what depends on the rest, solves for equality and lets go of negative multipliers. What remains
// is a point that the method itself could have reached.
template <class Team, class Geometry>
TACFAST_PART Outcome restart(const Team& team, Geometry& geometry, const Constraints& c, ActiveSet& set,
                             const Limits& limits, bool factorised) {
    const int guessed = factorised ? 0 : set.size;
    if (!factorised) {
        geometry.reset(team);
        set.size = 0;
    }
    for (int g = 0; g < guessed; ++g) {
        const int p = set.index[g];  // g >= set.size: not yet overwritten
        team.sync();
        if (set.size >= limits.max_active) return Outcome::crowded;
        const Projection projection = geometry.project(team, c, set, p);
        if (projection.ambiguous) return Outcome::ambiguous;
        if (projection.distance2 > 0) take(team, geometry, c, set, p, projection.distance2, 0.0);
    }
    for (;;) {
        geometry.solve(team, c, set);
        const Best lowest = team.largest(set.size, [&](int i) { return -set.lambda[i]; });
        if (lowest.index < 0 || lowest.value <= 0) return Outcome::settled;
        ++set.iterations;
        drop(team, geometry, c, set, lowest.index);
    }
}

// Sorts the active set by class, so that the bits of the result do not depend on the path to it.
template <class Team>
TACFAST_HD void sort_active(const Team& team, const Constraints& c, ActiveSet& set) {
    team.sync();
    if (team.rank() == 0) {
        for (int i = 0; i < set.size; ++i) {
            const int j = set.index[i];
            c.weight[j] = 1 / c.length[j];
            int at = i;
            for (; at > 0 && set.index[at - 1] > j; --at) set.index[at] = set.index[at - 1];
            set.index[at] = j;
        }
    }
    team.sync();
}

// Solves the QP from the guess in set.index[0 .. set.size), which may be empty and lists no constraint twice and none
// of weight 0. On return set.index, set.lambda, set.products and set.norm describe the solution.
template <class Team, class Geometry>
TACFAST_PART Outcome solve_active_set(const Team& team, const Head& head, Geometry& geometry, const Constraints& c,
                                      ActiveSet& set, const Limits& limits) {
    set.iterations = 0;
    constexpr int kRounds = 3;  // the second usually finds nothing to do; what the last ends with is only polished
    bool alone = false;         // whether one constraint was all: its multiplier, rho_j / |a_j|^2, is only polished
    for (int round = 0;; ++round) {
        Outcome outcome = restart(team, geometry, c, set, limits, alone);
        if (outcome != Outcome::settled) return outcome;
        if (round == kRounds || alone) break;
        const int before = set.iterations;
        outcome = ascend(team, head, geometry, c, set, limits);
        if (outcome != Outcome::settled) return outcome;
        if (round > 0 && set.iterations == before) return outcome;
        alone = set.iterations == 1 && set.size == 1;
        if (!alone) sort_active(team, c, set);
    }
    geometry.evaluate(team, c, set);
    return Outcome::settled;
}

TACFAST_CORE_END
