// The dense regime: where all C - 1 constraints of most classes are active, one Cholesky factor gives the multipliers
// of every class.
//
// With v = (sum of lambda) e_k - lambda the problem of class k is min 1/2 v'Mv + rho_k'v, 1'v = 0: the same matrix for
// all classes. M has the null vector 1, so M + alpha 11' is factorised instead, which changes nothing where 1'v = 0.
#pragma once

#include "core/class_qp.h"

TACFAST_CORE_BEGIN

// Whether all constraints can be active at once, in more than a quick task has room for, and the factor is worth its
// memory.
TACFAST_HD constexpr bool may_be_dense(int64_t classes, int64_t dim) {
    return classes > kQuickActive && classes <= 2048 && classes - 1 <= dim;
}

template <class T, class Team>
class DenseTask {
  public:
    // Doubles of what one team leaves for the others.
    static TACFAST_HD constexpr int64_t factor_size(int64_t classes) { return classes * classes + classes + 1; }

    // `memory`: (factor_size); `guess`: (K, C) multipliers.
    TACFAST_HD DenseTask(const Team& team_, const ClassSolve& args_, double* memory, double* guess_)
        : team(team_),
          args(args_),
          head(Head::of(args_.head)),
          factor(memory),
          constant(memory + head.classes * int64_t(head.classes)),
          total(constant + head.classes),
          guess(guess_) {}

    // By one team: the factor, if the quick tasks gave most classes up as crowded and M allows it.
    TACFAST_HD void prepare() {
        const int8_t* status = args.status + args.first;
        const int count = int(args.last - args.first);
        const double crowded = team.sum(count, [=](int r) { return status[r] == kCrowded ? 1.0 : 0.0; });
        double sum = 0;  // says that there is no factor
        if (2 * crowded > count && factorise()) {
            double* ones = constant;
            team.each(head.classes, [=](int j) { ones[j] = 1; });
            team.sync();
            solve(ones);
            sum = team.sum(head.classes, [=](int j) { return ones[j]; });
        }
        if (team.rank() == 0) *total = sum;
    }

    // By any team, after that: the multipliers under which all constraints of target r hold with equality, or zeros.
    // `x`: (C) scratch.
    TACFAST_HD void run(int64_t r, double* TACFAST_RESTRICT x) {
        const int C = head.classes, k = int(args.targets[r]);
        const double* TACFAST_RESTRICT shape = constant;
        double* TACFAST_RESTRICT v = guess + r * int64_t(C);
        if (!(*total > 0)) return team.each(C, [=](int j) { v[j] = 0; });
        const T* gaps = static_cast<const T*>(args.gaps) + k * args.gap_stride_k;
        const int64_t step = args.gap_stride_j;
        const double margin = args.margin;
        auto rho = [=](int j) { return j == k ? 0.0 : double(gaps[j * step]) + margin; };
        team.each(C, [=](int j) { x[j] = rho(j); });
        team.sync();
        solve(x);
        double shift = team.sum(C, [=](int j) { return x[j]; }) / *total;
        team.each(C, [=](int j) { v[j] = shape[j] * shift - x[j]; });
        team.sync();
        // What rounding left, once more.
        const double* gram = head.gram;
        team.dots(
            C, C, [=](int i, auto at) { return at(gram + i * int64_t(C)) * at(v); },
            [=](int i, double product) { x[i] = rho(i) + product; });
        team.sync();
        solve(x);
        shift = team.sum(C, [=](int j) { return x[j]; }) / *total;
        team.each(C, [=](int j) { v[j] = j == k ? 0.0 : x[j] - shape[j] * shift - v[j]; });
        team.sync();
    }

  private:
    const Team& team;
    const ClassSolve& args;
    const Head head;
    double* factor;    // (C, C) L below the diagonal and L' above
    double* constant;  // (C) the solution for a right-hand side of ones
    double* total;     // (1) its sum, 0 where there is no factor
    double* guess;

    // Column by column; returns whether M + alpha 11' is positive definite beyond rounding.
    TACFAST_HD bool factorise() {
        const int C = head.classes;
        const int64_t step = C;
        const double* gram = head.gram;
        double* L = factor;
        const double alpha = team.sum(C, [=](int j) { return gram[j * (step + 1)]; }) / C;
        for (int j = 0; j < C; ++j) {
            const double* own = L + j * step;
            team.dots(
                C - j, j, [=](int i, auto at) { return at(L + (j + i) * step) * at(own); },
                [=](int i, double product) { L[j * step + j + i] = gram[(j + i) * step + j] + alpha - product; });
            team.sync();
            const double pivot = L[j * (step + 1)];
            if (!(pivot > 1e-14 * C * (gram[j * (step + 1)] + alpha))) return false;
            const double scale = 1 / std::sqrt(pivot);
            team.each(C - j - 1, [=](int i) {
                const int row = j + 1 + i;
                L[row * step + j] = L[j * step + row] *= scale;
            });
            team.sync();
        }
        team.each(C, [=](int j) { L[j * (step + 1)] = std::sqrt(L[j * (step + 1)]); });  // until here it was a pivot
        team.sync();
        return true;
    }

    // x = (M + alpha 11')^-1 x, by columns of L and then of L': whatever a step has settled is left as it is until the
    // end, so that no lane waits for another within a step.
    TACFAST_HD void solve(double* TACFAST_RESTRICT x) const {
        const int C = head.classes;
        const double* TACFAST_RESTRICT L = factor;
        const int64_t step = C;
        for (int j = 0; j < C; ++j) {
            const double xj = x[j] / L[j * (step + 1)];
            team.each(C - j - 1, [=](int i) { x[j + 1 + i] -= L[j * step + j + 1 + i] * xj; });
            team.sync();
        }
        divide(x);
        for (int j = C - 1; j >= 0; --j) {
            const double xj = x[j] / L[j * (step + 1)];
            team.each(j, [=](int i) { x[i] -= L[j * step + i] * xj; });
            team.sync();
        }
        divide(x);
    }

    TACFAST_HD void divide(double* TACFAST_RESTRICT x) const {
        const double* L = factor;
        const int64_t step = head.classes;
        team.each(head.classes, [=](int j) { x[j] /= L[j * (step + 1)]; });
        team.sync();
    }
};

TACFAST_CORE_END
