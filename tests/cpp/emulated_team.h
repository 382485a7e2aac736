// Teams for tests: a thread block made of std::threads, and a lane that works backwards.
#pragma once

#include <barrier>
#include <memory>
#include <thread>
#include <vector>

#include "core/team.h"

namespace tacfast::test {

using core::Best;

// N threads behind the Team interface. A reduction synchronises once, which is all that a thread block needs: its
// partial results alternate between two arrays, so that a lane which is already at the next reduction overwrites
// nothing that another lane still reads. Nothing else synchronises, so under ThreadSanitizer a sync that core/ lacks is
// a reported race, whatever order the threads happened to run in.
class BlockTeam {
  public:
    struct Shared {
        explicit Shared(int lanes_) : lanes(lanes_), barrier(lanes_), sums(2 * lanes_), bests(2 * lanes_) {}
        const int lanes;
        std::barrier<> barrier;
        std::vector<double> sums;
        std::vector<Best> bests;
        int collected = 0;
    };

    BlockTeam(Shared& shared_, int lane_) : shared(&shared_), lane(lane_) {}

    int rank() const { return lane; }
    int lanes() const { return shared->lanes; }
    void sync() const { shared->barrier.arrive_and_wait(); }

    template <class F>
    void each(int n, const F& f) const {
        for (int i = lane; i < n; i += shared->lanes) f(i);
    }

    template <class F>
    void grid(int n, int m, const F& f) const {
        each(n * m, [&](int at) { f(at / m, at % m); });
    }

    template <class Term>
    void combine(int n, int m, double start, const Term& term, double* out) const {
        core::combine_each(*this, n, m, start, term, out);
    }

    template <class Term, class Store>
    void dots(int n, int m, const Term& term, const Store& store) const {
        for (int i = n - 1 - lane; i >= 0; i -= shared->lanes)  // another lane than each() would choose
            store(i, core::dot_each(m, i, term));
    }

    template <class F>
    int collect(int n, const F& f, int* list) const {
        sync();
        if (lane == shared->lanes - 1) shared->collected = core::SerialTeam{}.collect(n, f, list);
        sync();
        return shared->collected;
    }

    template <class F>
    double sum(int n, const F& f) const {
        double part = 0;
        each(n, [&](int i) { part += f(i); });
        double* parts = shared->sums.data() + turn();
        parts[lane] = part;
        sync();
        double total = 0;
        for (int l = 0; l < shared->lanes; ++l) total += parts[l];
        return total;
    }

    template <class F>
    Best largest(int n, const F& f) const {
        Best best = core::no_best();
        each(n, [&](int i) {
            const double value = f(i);
            if (value > best.value) best = {value, i};
        });
        Best* parts = shared->bests.data() + turn();
        parts[lane] = best;
        sync();
        for (int l = 0; l < shared->lanes; ++l)
            if (best.loses_to(parts[l].value, parts[l].index)) best = parts[l];
        return best;
    }

  private:
    Shared* shared;
    int lane;
    mutable bool odd = false;

    // Where the partial results of this reduction go.
    int turn() const {
        odd = !odd;
        return odd ? shared->lanes : 0;
    }
};

// Runs f(team) on every lane of a block of so many threads.
template <class F>
void run_block(int threads, const F& f) {
    BlockTeam::Shared shared(threads);
    std::vector<std::thread> others;
    for (int lane = 1; lane < threads; ++lane) others.emplace_back([&shared, &f, lane] { f(BlockTeam(shared, lane)); });
    f(BlockTeam(shared, 0));
    for (std::thread& other : others) other.join();
}

// One lane that runs everything from the last index to the first: finds a loop whose turns depend on one another.
struct ReversedTeam {
    int rank() const { return 0; }
    int lanes() const { return 1; }
    void sync() const {}

    template <class F>
    void each(int n, const F& f) const {
        for (int i = n - 1; i >= 0; --i) f(i);
    }

    template <class F>
    void grid(int n, int m, const F& f) const {
        each(n * m, [&](int at) { f(at / m, at % m); });
    }

    template <class Term>
    void combine(int n, int m, double start, const Term& term, double* out) const {
        core::combine_each(*this, n, m, start, term, out);
    }

    template <class Term, class Store>
    void dots(int n, int m, const Term& term, const Store& store) const {
        each(n, [&](int i) { store(i, core::dot_each(m, i, term)); });
    }

    template <class F>
    int collect(int n, const F& f, int* list) const {
        return core::SerialTeam{}.collect(n, f, list);
    }

    template <class F>
    double sum(int n, const F& f) const {
        double total = 0;
        each(n, [&](int i) { total += f(i); });
        return total;
    }

    template <class F>
    Best largest(int n, const F& f) const {
        Best best = core::no_best();
        each(n, [&](int i) {
            const double value = f(i);
            if (value > -INFINITY && best.loses_to(value, i)) best = {value, i};
        });
        return best;
    }
};

}  // namespace tacfast::test
