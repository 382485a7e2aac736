// core/ under one lane, one backward lane and emulated thread blocks, against KKT conditions checked from scratch.
#include "solving.h"

namespace core = tacfast::core;
using namespace tacfast::test;

namespace {

// How often the tests met what they are meant to meet.
struct Coverage {
    int settled = 0, infeasible = 0, ambiguous = 0, with_drops = 0, stopped = 0;
} coverage;

const char* name(Route route) { return route == Route::rows ? "rows" : "both"; }

// Where the last argument says what was checked.
bool expect(bool ok, const Problem& p, const Crew& crew, Route route, const char* what, double detail = 0) {
    return check(ok, "%s: C=%d d=%d seed %u, %s, %s: %s (%g)", p.family, p.classes, p.dim, p.seed, crew.name,
                 name(route), what, detail);
}

double worst(const Residuals& r) {
    return double(std::fmax(std::fmax(r.primal, r.dual), std::fmax(r.stationarity, r.gap)));
}

// Every number of the certificate against the definition.
void check_certificate(const Problem& p, const Crew& crew, Route route, const Certificate& c, const Residuals& r) {
    const Real off = std::fmax(std::fmax(std::fabs(c.primal - r.primal), std::fabs(c.dual - r.dual)),
                               std::fmax(std::fabs(c.stationarity - r.stationarity), std::fabs(c.gap - r.gap)));
    expect(off <= 1e-13L, p, crew, route, "certify() agrees with the definition", double(off));
}

// The upper bound is the length of a feasible multiple of s, the lower one a length that no feasible point undercuts.
void check_bounds(const Problem& p, const Crew& crew, Route route, const Arrays& a) {
    const Certificate& c = a.answer.certificate;
    const Real norm = length_of(a.point.data(), p.dim);
    expect(c.lower <= norm * (1 + 1e-12L) && c.upper >= norm * (1 - 1e-12L), p, crew, route, "bounds enclose |s|",
           c.upper - c.lower);
    if (!(c.upper < INFINITY) || norm == 0) return;
    const Definition qp = p.definition();
    const Real t = c.upper / norm;
    for (int j = 0; j < p.classes; ++j) {
        if (!qp.kept[j]) continue;
        const Real missing = qp.rho[j] - t * qp.product(j, a.point.data());
        expect(missing <= 1e-17L * std::fabs(qp.rho[j]), p, crew, route, "the upper bound is of a feasible point",
               double(missing));
    }
}

void check_settled(const Problem& p, const Crew& crew, Route route, const Arrays& a) {
    const Residuals r = residuals(p.definition(), a.point.data(), a.duals.data());
    ++coverage.settled;
    // The rows have no excuse; what the Gram matrix loses, a failed certificate hands on to them.
    expect(r.within(route == Route::rows ? 1e-10 : p.tol), p, crew, route, "KKT", worst(r));
    check_certificate(p, crew, route, a.answer.certificate, r);
    if (p.tol < 1e-8) check_bounds(p, crew, route, a);
    expect(!p.infeasible, p, crew, route, "known to be infeasible");
    for (int j = 0; j < p.classes; ++j) {
        const std::vector<int> active = a.active();
        const bool listed = std::binary_search(active.begin(), active.end(), j);
        expect(listed || a.duals[j] == 0, p, crew, route, "multipliers only in the active set", a.duals[j]);
    }
    coverage.with_drops += a.answer.iterations > a.answer.size;
}

// Whatever the outcome, it must be proven; only next to a singular problem may a solve run out of iterations.
void check_answer(const Problem& p, const Crew& crew, Route route, const Arrays& a) {
    const Outcome outcome = a.answer.outcome;
    coverage.ambiguous += route == Route::both && a.used_rows();
    if (p.clash()) {
        expect(outcome == Outcome::infeasible, p, crew, route, "a clash is infeasible");
    } else if (outcome == Outcome::settled) {
        check_settled(p, crew, route, a);
    } else if (outcome == Outcome::infeasible) {
        ++coverage.infeasible;
        expect(proves_infeasible(p.definition(), a.duals.data(), p.tol / 100), p, crew, route, "ray");
        const Certificate& c = a.answer.certificate;
        expect(c.stationarity <= p.tol / 100 && c.dual == 0 && c.lower > 0, p, crew, route, "certified ray",
               c.stationarity);
    } else {
        ++coverage.stopped;
        expect(outcome == Outcome::stopped && p.tol > 1e-8 && route == Route::both, p, crew, route, "outcome",
               double(outcome));
    }
}

// The distance of two solutions next to their length, by what the KKT residuals allow.
void check_same_point(const Problem& p, const Crew& crew, Route route, const Arrays& a, const Arrays& b, double tol) {
    if (a.answer.outcome != Outcome::settled || b.answer.outcome != Outcome::settled) return;
    std::vector<double> difference(a.point);
    for (int x = 0; x < p.dim; ++x) difference[x] -= b.point[x];
    const Real length = length_of(a.point.data(), p.dim);
    const Real off = share(length_of(difference.data(), p.dim), length);
    expect(off <= Real(tol), p, crew, route, "the same point", double(off));
}

void test_families(unsigned seed) {
    for (const Problem& p : families(seed)) {
        const Arrays reference = solve(kSerial, p, Route::rows, usual_limits(p));
        for (Route route : {Route::both, Route::rows}) {
            const Arrays serial = solve(kSerial, p, route, usual_limits(p));
            expect(serial.answer.outcome == reference.answer.outcome, p, kSerial, route, "the same outcome",
                   double(serial.answer.outcome));
            check_same_point(p, kSerial, route, reference, serial, p.generic ? 1e-11 : 10 * std::sqrt(p.tol));
            if (p.generic && route == Route::both)
                expect(!serial.used_rows(), p, kSerial, route, "the Gram matrix can tell");
            for (const Crew& crew : kCrews) {
                if (crew.lanes == 8 && seed > 1) continue;  // eight threads take long to meet on two cores
                const Arrays a = solve(crew, p, route, usual_limits(p));
                check_answer(p, crew, route, a);
                if (p.generic)
                    expect(a.active() == serial.active(), p, crew, route, "the active set of the serial team");
            }
        }
    }
}

// The same answer to the bit from whatever guess.
void test_guesses(unsigned seed) {
    Random random(seed);
    for (const Problem& p : families(seed)) {
        if (!p.generic || p.infeasible) continue;
        for (Route route : {Route::both, Route::rows}) {
            for (const Crew& crew : kFewCrews) {
                const Arrays cold = solve(crew, p, route, usual_limits(p));
                if (cold.answer.outcome != Outcome::settled) continue;
                for (int kind = 0; kind < 4; ++kind) {  // right, its complement, all, random
                    std::vector<double> guess(cold.duals);
                    for (double& g : guess)
                        g = kind == 0 ? g : kind == 1 ? double(g == 0) : kind == 2 ? 1.0 : random.normal();
                    const Arrays warm = solve(crew, p, route, usual_limits(p), guess.data());
                    if (!expect(warm.answer.outcome == Outcome::settled, p, crew, route, "settled from a guess", kind))
                        continue;
                    if (warm.used_rows() != cold.used_rows()) continue;  // a guess that only the rows can judge
                    expect(same_bits(warm.duals, cold.duals) && same_bits(warm.point, cold.point) &&
                               same_bits(warm.products, cold.products) &&
                               same_bits(warm.answer.norm, cold.answer.norm) && warm.active() == cold.active(),
                           p, crew, route, "the same bits from a guess", kind);
                    if (kind == 0) expect(warm.answer.iterations == 0, p, crew, route, "nothing to do");
                }
            }
        }
    }
}

void test_limits() {
    Problem p = simplex(3, 20);
    p.prepare();
    for (const Crew& crew : kFewCrews) {
        for (Route route : {Route::both, Route::rows}) {
            for (int most : {0, 1, 7}) {
                const Arrays stopped = solve(crew, p, route, {most, p.classes});
                expect(stopped.answer.outcome == Outcome::stopped, p, crew, route, "max_iter", most);
                expect(stopped.answer.iterations == most, p, crew, route, "iterations", most);
                const Arrays crowded = solve(crew, p, route, {1000, most});
                expect(crowded.answer.outcome == Outcome::crowded, p, crew, route, "max_active", most);
                expect(crowded.answer.size == most, p, crew, route, "size", most);
                const Residuals r = residuals(p.definition(), stopped.point.data(), stopped.duals.data());
                check_certificate(p, crew, route, stopped.answer.certificate, r);
            }
            const Arrays just = solve(crew, p, route, {p.classes - 1, p.classes - 1});
            check_answer(p, crew, route, just);
        }
    }
}

// Active sets past 32, 64 and 128, where the inverse changes its stride.
void test_large() {
    for (int classes : {33, 34, 80, 150}) {
        Problem p = simplex(7, classes);
        p.prepare();
        for (const Crew& crew : kFewCrews) {
            for (Route route : {Route::both, Route::rows}) {
                const Arrays a = solve(crew, p, route, usual_limits(p));
                check_answer(p, crew, route, a);
                expect(a.answer.size == classes - 1, p, crew, route, "everything active", a.answer.size);
            }
        }
    }
}

// certify() against the definition away from the solution too, given products that are as far off as they may be, and
// nonsense where it has to look for itself.
void test_certify(unsigned seed) {
    Random random(seed);
    for (const Problem& p : families(seed)) {
        Arrays a(p);
        const core::Head head = p.head();
        const core::Constraints c{p.target, a.rho.data(), a.norm2.data(), a.length.data(), a.weight.data()};
        const core::SerialTeam team;
        core::screen(team, head, c, p.bias.data(), p.margin, [&](int j) { return p.gaps[j]; });
        for (double& s : a.point) s = random.normal();
        for (double& l : a.duals) l = random.below(3) == 0 ? random.normal() : random.uniform();
        std::vector<double> before = a.point;
        for (double& s : before) s += 1e-7 * random.normal();
        const Definition qp = p.definition();
        double multipliers = 0;
        for (double l : a.duals) multipliers += std::fabs(l);
        const double off = 1e-14 * p.longest * p.longest * multipliers;
        for (int j = 0; j < p.classes; ++j) {
            a.products[j] = double(qp.product(j, before.data())) + (random.below(2) ? off : -off);
            if (random.below(5) == 0) a.products[j] = NAN;
        }
        a.answer.certificate = core::certify(team, head, c, a.point.data(), a.duals.data(),
                                             {before.data(), a.products.data(), multipliers}, a.combined.data(),
                                             a.low.data(), a.support.data());
        const Residuals r = residuals(p.definition(), a.point.data(), a.duals.data());
        check_certificate(p, kSerial, Route::both, a.answer.certificate, r);
    }
}

// Nearly dependent rows on every scale, many times: nothing may leave its array, every answer must be proven.
void test_staircases() {
    for (unsigned seed = 100; seed < 160; ++seed) {
        for (double step : {0.3, 1.0, 1.5, 2.5, 4.0}) {
            Problem p = staircase(seed, 6 + int(seed % 30), 2 + int(seed % 6), step);
            if (seed % 2 == 0) make_extreme(p);
            p.prepare();
            for (Route route : {Route::both, Route::rows})
                check_answer(p, kSerial, route, solve(kSerial, p, route, usual_limits(p)));
        }
    }
}

}  // namespace

int main() {
    for (unsigned seed = 1; seed <= 3; ++seed) test_families(seed);
    test_guesses(11);
    test_limits();
    test_large();
    for (unsigned seed = 21; seed <= 40; ++seed) test_certify(seed);
    test_staircases();
    std::printf("settled %d (%d with drops), infeasible %d, stopped %d; %d by the rows\n", coverage.settled,
                coverage.with_drops, coverage.infeasible, coverage.stopped, coverage.ambiguous);
    check(coverage.settled > 0 && coverage.infeasible > 0 && coverage.ambiguous > 0 && coverage.with_drops > 0,
          "every kind of answer was met");
    check(coverage.stopped <= 8, "seldom out of iterations (%d)", coverage.stopped);
    return report("core");
}
