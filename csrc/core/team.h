// A team is what runs an algorithm of core/: one CPU lane, a warp, a thread block.
//
// Every lane of a team executes the same code. Scalars are kept by every lane alike; arrays are shared. A team offers
//   rank(), lanes()      this lane's number, and how many there are
//   sync()               what any lane wrote before is seen by every lane after
//   each(n, f)           f(i) once for every i in [0, n), on any lane; i stays with its lane from call to call.
//                        No sync before or after.
//   grid(n, m, f)        f(i, j) once for every i in [0, n) and j in [0, m), on any lane. No sync before or after.
//   combine(n, m, start, term, out)
//                        out[j] = start + the sum of term(i, at) over i in [0, m), in this order, for every j in [0,
//                        n), where at(p) is p[j]. No sync before or after, as for each().
//   dots(n, m, term, store)
//                        store(i, the sum over x in [0, m) of term(i, at), where at(p) is p[x]) for every i in [0, n),
//                        on any one lane. No sync before or after.
//   collect(n, f, list)  list = the i in [0, n) for which f(i) is true, in ascending order; returns how many. f(i) may
//                        be called on any lane. Synchronises before and after.
//   sum(n, f)            the sum of f(i), known to every lane; f(i) is called on the lane that each() would choose.
//                        Synchronises.
//   largest(n, f)        the largest f(i) and the smallest i that attains it, {-inf, -1} if there is none; NaN never
//                        wins. Synchronises.
// All lanes must reach every sync, dots, collect, sum and largest.
#pragma once

#include "core/config.h"

TACFAST_CORE_BEGIN

struct Best {
    double value;
    int index;

    // Whether (v, i) beats this one; a total order, so that every reduction tree finds the same winner.
    TACFAST_HD bool loses_to(double v, int i) const {
        return v > value || (v == value && static_cast<unsigned>(i) < static_cast<unsigned>(index));
    }
};

TACFAST_HD Best no_best() { return {-INFINITY, -1}; }

// combine() for a team whose lanes take one entry at a time.
template <class Team, class Term>
TACFAST_HD void combine_each(const Team& team, int n, int m, double start, const Term& term, double* out) {
    team.each(n, [&](int j) {
        double sum = start;
        for (int i = 0; i < m; ++i) sum += term(i, [j](const double* p) { return p[j]; });
        out[j] = sum;
    });
}

// The sum of dots() for one i, one entry at a time.
template <class Term>
TACFAST_HD double dot_each(int m, int i, const Term& term) {
    double sum = 0;
    for (int x = 0; x < m; ++x) sum += term(i, [x](const auto* p) { return double(p[x]); });
    return sum;
}

// One CPU lane. Its long reductions fill a buffer first, in a loop that compilers turn into vectors, and run over 32
// partial results after that; short ones are not worth that.
struct SerialTeam {
    TACFAST_HD int rank() const { return 0; }
    TACFAST_HD int lanes() const { return 1; }
    TACFAST_HD void sync() const {}

    template <class F>
    TACFAST_HD void each(int n, const F& f) const {
        for (int i = 0; i < n; ++i) f(i);
    }

    template <class F>
    TACFAST_HD void grid(int n, int m, const F& f) const {
        for (int i = 0; i < n; ++i)
            for (int j = 0; j < m; ++j) f(i, j);
    }

    // Four vectors of sums hide the latency of an addition.
    template <class Term, class Store>
    TACFAST_HD void dots(int n, int m, const Term& term, const Store& store) const {
        constexpr int kSums = 4;
        for (int i = 0; i < n; ++i) {
            Doubles part[kSums] = {};
            int x = 0;
            for (; x + kSums * kDoubles <= m; x += kSums * kDoubles)
                for (int v = 0; v < kSums; ++v)
                    part[v] += term(i, [first = x + v * kDoubles](const auto* p) { return load(p + first); });
            double rest = 0;
            for (; x < m; ++x) rest += term(i, [x](const auto* p) { return double(p[x]); });
            store(i, rest + fold<kSums>(part, [](auto a, auto b) { return a + b; }));
        }
    }

    template <class F>
    TACFAST_HD int collect(int n, const F& f, int* list) const {
        int count = 0;
        for (int i = 0; i < n; ++i) {  // no branch: what does not count is overwritten
            list[count] = i;
            count += f(i) ? 1 : 0;
        }
        return count;
    }

    template <class F>
    TACFAST_HD double sum(int n, const F& f) const {
        if (n < kShort) {
            double total = 0;
            for (int i = 0; i < n; ++i) total += f(i);
            return total;
        }
        Doubles part[kParts] = {};
        double values[kBuffer];
        for (int first = 0; first < n; first += kBuffer) {
            const int count = fill(values, n, first, 0, f);
            for (int i = 0; i < count; i += kStep)
                for (int v = 0; v < kParts; ++v) part[v] += load(values + i + v * kDoubles);
        }
        return fold<kParts>(part, [](auto a, auto b) { return a + b; });
    }

    template <class F>
    TACFAST_HD Best largest(int n, const F& f) const {
        Best best = no_best();
        if (n < kShort) {
            for (int i = 0; i < n; ++i) {
                const double value = f(i);
                best = value > best.value ? Best{value, i} : best;
            }
            return best;
        }
        double values[kBuffer];
        for (int first = 0; first < n; first += kBuffer) {
            const int count = fill(values, n, first, -INFINITY, f);
            const double most = largest_of(values, count);
            if (most > best.value) best = {most, first + first_equal(values, count, most)};
        }
        return best;
    }

    // Eight vectors of sums stay in registers, so that `out` is written once.
    template <class Term>
    TACFAST_HD void combine(int n, int m, double start, const Term& term, double* out) const {
        int j = 0;
        for (; j + 8 * kDoubles <= n; j += 8 * kDoubles) strip<8>(j, m, start, term, out);
        for (; j + kDoubles <= n; j += kDoubles) strip<1>(j, m, start, term, out);
        for (; j < n; ++j) {
            double sum = start;
            for (int i = 0; i < m; ++i) sum += term(i, [j](const double* p) { return p[j]; });
            out[j] = sum;
        }
    }

  private:
    static constexpr int kShort = 32;
    static constexpr int kStep = 32;
    static constexpr int kParts = kStep / kDoubles;
    static constexpr int kBuffer = 256;

    TACFAST_HD static Doubles load(const double* from) {
        Doubles entries;
        __builtin_memcpy(&entries, from, sizeof entries);
        return entries;
    }

    TACFAST_HD static Doubles load(const float* from) {
        Floats entries;
        __builtin_memcpy(&entries, from, sizeof entries);
        return widen(entries);
    }

    // The next values, filled up to a multiple of kStep; returns how many there are then.
    template <class F>
    TACFAST_HD static int fill(double* values, int n, int first, double filling, const F& f) {
        const int count = n - first < kBuffer ? n - first : kBuffer;
        for (int i = 0; i < count; ++i) values[i] = f(first + i);
        const int padded = (count + kStep - 1) / kStep * kStep;
        for (int i = count; i < padded; ++i) values[i] = filling;
        return padded;
    }

    // Partial results to one, pairwise.
    template <int parts, class Combine>
    TACFAST_HD static double fold(Doubles* part, const Combine& combine) {
        for (int half = parts / 2; half > 0; half /= 2)
            for (int v = 0; v < half; ++v) part[v] = combine(part[v], part[v + half]);
        double lane[kDoubles];
        __builtin_memcpy(lane, part, sizeof lane);
        for (int half = kDoubles / 2; half > 0; half /= 2)
            for (int l = 0; l < half; ++l) lane[l] = combine(lane[l], lane[l + half]);
        return lane[0];
    }

    TACFAST_HD static double largest_of(const double* values, int count) {
        Doubles part[kParts];
        for (Doubles& most : part) most = -INFINITY - Doubles{};
        for (int i = 0; i < count; i += kStep)
            for (int v = 0; v < kParts; ++v) {
                const Doubles value = load(values + i + v * kDoubles);
                part[v] = value > part[v] ? value : part[v];  // a NaN never wins
            }
        return fold<kParts>(part, [](auto a, auto b) { return a > b ? a : b; });
    }

    TACFAST_HD static int first_equal(const double* values, int count, double wanted) {
        Doubles part[kParts];
        for (Doubles& at : part) at = double(kBuffer) - Doubles{};
        for (int i = count - kStep; i >= 0; i -= kStep)  // backwards, so that the first one stays
            for (int v = 0; v < kParts; ++v)
                part[v] = load(values + i + v * kDoubles) == wanted ? double(i) - Doubles{} : part[v];
        double at[kStep];
        __builtin_memcpy(at, part, sizeof at);
        int first = kBuffer;
        for (int l = 0; l < kStep; ++l) {
            const int place = int(at[l]) + l;
            first = place < first ? place : first;
        }
        return first;
    }

    template <int vectors, class Term>
    TACFAST_HD static void strip(int j, int m, double start, const Term& term, double* out) {
        Doubles sums[vectors];
        const int64_t first = j;
        for (int v = 0; v < vectors; ++v) sums[v] = start - Doubles{};
        for (int i = 0; i < m; ++i)
            for (int v = 0; v < vectors; ++v)  // the offset of v goes into the address of the load
                sums[v] += term(i, [first, v](const double* p) { return load(p + first + v * kDoubles); });
        for (int v = 0; v < vectors; ++v) __builtin_memcpy(out + j + v * kDoubles, &sums[v], sizeof sums[v]);
    }
};

TACFAST_CORE_END
