// One solve through core/ by any team, over arrays of exactly the documented sizes, each on its own for ASan.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "core/class_qp.h"
#include "emulated_team.h"
#include "problems.h"

namespace tacfast::test {

using core::Certificate;
using core::Limits;
using core::Outcome;

enum class Route { rows, both };  // both: the Gram matrix where it can tell, else the rows

// Who solves. lanes = 0: SerialTeam, -1: ReversedTeam, else BlockTeam.
struct Crew {
    int lanes;
    const char* name;
};
constexpr Crew kSerial{0, "serial"}, kReversed{-1, "reversed"}, kBlock{3, "block of 3"};
constexpr Crew kCrews[] = {kSerial, kReversed, {1, "block of 1"}, kBlock, {8, "block of 8"}};
constexpr Crew kFewCrews[] = {kSerial, kReversed, kBlock};

// What every lane must know alike.
struct Answer {
    Outcome outcome;
    int size, iterations;
    double norm;
    Certificate certificate;

    bool operator==(const Answer& o) const {
        const Certificate &a = certificate, &b = o.certificate;
        return outcome == o.outcome && size == o.size && iterations == o.iterations && same_bits(norm, o.norm) &&
               same_bits(a.primal, b.primal) && same_bits(a.dual, b.dual) &&
               same_bits(a.stationarity, b.stationarity) && same_bits(a.gap, b.gap) && same_bits(a.lower, b.lower) &&
               same_bits(a.upper, b.upper);
    }
};

// The arrays of one solve. They start as garbage, so that whatever is read unwritten shows.
struct Arrays {
    static constexpr double kGarbage = std::numeric_limits<double>::quiet_NaN();
    using Doubles = std::vector<double>;

    std::vector<int> index, support;
    Doubles lambda, coef, scratch, products, low, point, normal, combined, first, wide, rho, norm2, length, weight,
        duals;
    Answer answer{};

    explicit Arrays(const Problem& p) {
        const size_t all = p.classes, most = core::Work::capacity(p.classes, p.dim);
        index.assign(most, 1 << 28);
        support.assign(all, 1 << 28);
        for (Doubles* x : {&lambda, &coef, &scratch}) x->assign(most, kGarbage);
        for (Doubles* x : {&products, &low, &rho, &norm2, &length, &weight, &duals}) x->assign(all, kGarbage);
        for (Doubles* x : {&point, &normal, &combined}) x->assign(p.dim, kGarbage);
        const size_t side = core::GramGeometry::first_side(int64_t(most));
        first.assign(side * side, kGarbage);
        wide.assign(core::Work::far_size(p.classes, p.dim, p.stride, core::Effort::thorough) - 3 * p.stride, kGarbage);
    }

    core::Work work() {
        core::Work w{};
        w.set.index = index.data();
        w.set.lambda = lambda.data();
        w.set.coef = coef.data();
        w.set.products = products.data();
        w.scratch = scratch.data();
        w.first = first.data();
        w.wide = w.rows = wide.data();
        w.point = point.data();
        w.normal = normal.data();
        w.combined = combined.data();
        w.low = low.data();
        w.support = support.data();
        return w;
    }

    // Whether the rows had to decide: nothing else writes here.
    bool used_rows() const { return !std::isnan(normal[0]); }

    std::vector<int> active() const {
        std::vector<int> sorted(index.begin(), index.begin() + answer.size);
        std::sort(sorted.begin(), sorted.end());
        return sorted;
    }
};

// What every lane runs.
template <class Team>
__attribute__((noinline)) Answer run_lane(const Team& team, const Problem& p, Arrays& arrays, Route route,
                                          const Limits& limits, const double* guess) {
    const core::Head head = p.head();
    const core::Constraints c{p.target, arrays.rho.data(), arrays.norm2.data(), arrays.length.data(),
                              arrays.weight.data()};
    core::Work work = arrays.work();
    const core::Screening screening =
        core::screen(team, head, c, p.bias.data(), p.margin, [&](int j) { return p.gaps[j]; });
    Answer answer{Outcome::infeasible, 0, 0, 0, {}};
    if (screening.clash >= 0) return answer;
    if (guess != nullptr) core::adopt_support(team, head, c, guess, work.set);
    const bool hard = screening.hard || route == Route::rows;
    answer.outcome = hard ? Outcome::ambiguous : core::solve_by_gram(team, head, c, work, limits);
    if (answer.outcome == Outcome::ambiguous) answer.outcome = core::solve_by_rows(team, head, c, work, limits);
    answer.size = work.set.size;
    answer.iterations = work.set.iterations;
    answer.norm = work.set.norm;
    double* duals = arrays.duals.data();
    core::scatter_duals(team, head, work.set, duals);
    if (answer.outcome == Outcome::infeasible) {
        answer.certificate = core::certify_ray(team, head, c, duals, work.combined, work.support);
    } else {
        const double total = team.sum(answer.size, [&](int i) { return std::fabs(work.set.lambda[i]); });
        answer.certificate = core::certify(team, head, c, work.point, duals, {work.point, work.set.products, total},
                                           work.combined, work.low, work.support);
    }
    return answer;
}

inline Limits usual_limits(const Problem& p) { return {4 * p.classes + 100, p.classes}; }

inline Arrays solve(const Crew& crew, const Problem& p, Route route, const Limits& limits,
                    const double* guess = nullptr) {
    Arrays arrays(p);
    if (crew.lanes == 0) {
        arrays.answer = run_lane(core::SerialTeam{}, p, arrays, route, limits, guess);
    } else if (crew.lanes < 0) {
        arrays.answer = run_lane(ReversedTeam{}, p, arrays, route, limits, guess);
    } else {
        std::vector<Answer> answers(static_cast<size_t>(crew.lanes));
        run_block(crew.lanes, [&](const BlockTeam& team) {
            answers[team.rank()] = run_lane(team, p, arrays, route, limits, guess);
        });
        arrays.answer = answers[0];
        for (const Answer& answer : answers)
            check(answer == answers[0], "lanes agree (%s, %s, seed %u)", p.family, crew.name, p.seed);
    }
    return arrays;
}

}  // namespace tacfast::test
