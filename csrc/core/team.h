// A team is what runs an algorithm of core/: one CPU lane, a warp, a thread block.
//
// Every lane of a team executes the same code. Scalars are kept by every lane alike; arrays are shared. A team offers
//   rank(), lanes()      this lane's number, and how many there are
//   sync()               what any lane wrote before is seen by every lane after
//   each(n, f)           f(i) once for every i in [0, n), on any lane; i stays with its lane from call to call.
//                        No sync before or after.
//   combine(n, m, start, term, out)
//                        out[j] = start + the sum of term(i, at) over i in [0, m), in this order, for every j in [0,
//                        n), where at(p) is p[j]. No sync before or after, as for each().
//   sum(n, f)            the sum of f(i), known to every lane; f(i) is called on the lane that each() would choose.
//                        Synchronises.
//   largest(n, f)        the largest f(i) and the smallest i that attains it, {-inf, -1} if there is none; NaN never
//                        wins. Synchronises.
// All lanes must reach every sync, sum and largest.
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

// One CPU lane. Its reductions fill a buffer first, in a loop that compilers turn into vectors, and run over eight
// partial results after that.
struct SerialTeam {
    TACFAST_HD int rank() const { return 0; }
    TACFAST_HD int lanes() const { return 1; }
    TACFAST_HD void sync() const {}

    template <class F>
    TACFAST_HD void each(int n, const F& f) const {
        for (int i = 0; i < n; ++i) f(i);
    }

    template <class F>
    TACFAST_HD double sum(int n, const F& f) const {
        Doubles part[kParts] = {};
        double values[kBuffer];
        for (int first = 0; first < n; first += kBuffer) {
            const int count = fill(values, n, first, 0, f);
            for (int i = 0; i < count; i += 8)
                for (int v = 0; v < kParts; ++v) part[v] += load(values + i + v * kDoubles);
        }
        double lane[8];
        __builtin_memcpy(lane, part, sizeof lane);
        return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
    }

    template <class F>
    TACFAST_HD Best largest(int n, const F& f) const {
        Doubles most[kParts], at[kParts];
        for (int v = 0; v < kParts; ++v) most[v] = -INFINITY - Doubles{}, at[v] = -1 - Doubles{};
        double values[kBuffer];
        for (int first = 0; first < n; first += kBuffer) {
            const int count = fill(values, n, first, -INFINITY, f);
            for (int i = 0; i < count; i += 8)  // `at` holds the number of the eight
                for (int v = 0; v < kParts; ++v) {
                    const Doubles value = load(values + i + v * kDoubles);
                    at[v] = value > most[v] ? double(first + i) - Doubles{} : at[v];
                    most[v] = value > most[v] ? value : most[v];
                }
        }
        double value[8], number[8];
        __builtin_memcpy(value, most, sizeof value);
        __builtin_memcpy(number, at, sizeof number);
        Best best = no_best();
        for (int l = 0; l < 8; ++l)
            if (number[l] >= 0 && best.loses_to(value[l], int(number[l]) + l)) best = {value[l], int(number[l]) + l};
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
    static constexpr int kParts = 8 / kDoubles;
    static constexpr int kBuffer = 256;

    TACFAST_HD static Doubles load(const double* from) {
        Doubles entries;
        __builtin_memcpy(&entries, from, sizeof entries);
        return entries;
    }

    // The next values, filled up to a multiple of eight; returns how many there are then.
    template <class F>
    TACFAST_HD static int fill(double* values, int n, int first, double filling, const F& f) {
        const int count = n - first < kBuffer ? n - first : kBuffer;
        for (int i = 0; i < count; ++i) values[i] = f(first + i);
        int padded = count;
        for (; padded % 8 != 0; ++padded) values[padded] = filling;
        return padded;
    }

    template <int vectors, class Term>
    TACFAST_HD static void strip(int j, int m, double start, const Term& term, double* out) {
        Doubles sums[vectors];
        for (int v = 0; v < vectors; ++v) sums[v] = start - Doubles{};
        for (int i = 0; i < m; ++i)
            for (int v = 0; v < vectors; ++v) {
                const int first = j + v * kDoubles;
                sums[v] += term(i, [first](const double* p) { return load(p + first); });
            }
        for (int v = 0; v < vectors; ++v) __builtin_memcpy(out + j + v * kDoubles, &sums[v], sizeof sums[v]);
    }
};

TACFAST_CORE_END
