// A team is what runs an algorithm of core/: one CPU lane, a warp, a thread block.
//
// Every lane of a team executes the same code. Scalars are kept by every lane alike; arrays are shared. A team offers
//   rank(), lanes()      this lane's number, and how many there are
//   sync()               what any lane wrote before is seen by every lane after
//   each(n, f)           f(i) once for every i in [0, n), on any lane; i stays with its lane from call to call.
//                        No sync before or after.
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

// One CPU lane. Its reductions run over eight partial results, which compilers turn into vectors.
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
        double part[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        int i = 0;
        for (; i + 8 <= n; i += 8)
            for (int l = 0; l < 8; ++l) part[l] += f(i + l);
        for (; i < n; ++i) part[0] += f(i);
        return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
    }

    template <class F>
    TACFAST_HD Best largest(int n, const F& f) const {
        double part[8];
        for (double& value : part) value = -INFINITY;
        int i = 0;
        for (; i + 8 <= n; i += 8) {
            double value[8];
            for (int l = 0; l < 8; ++l) value[l] = f(i + l);
            for (int l = 0; l < 8; ++l) part[l] = value[l] > part[l] ? value[l] : part[l];
        }
        for (; i < n; ++i) {
            const double value = f(i);
            part[0] = value > part[0] ? value : part[0];
        }
        double most = part[0];
        for (int l = 1; l < 8; ++l) most = part[l] > most ? part[l] : most;
        if (most == -INFINITY) return no_best();
        for (i = 0; f(i) != most;) ++i;  // rarer than one pass in two, and cheap where f is
        return {most, i};
    }
};

TACFAST_CORE_END
