// The class-wise QP after its collapse to C - 1 constraints:
//     min 1/2 |s|^2   subject to   a_j's >= rho_j for every class j != k,   a_j = w_k - w_j.
#pragma once

#include "core/arguments.h"
#include "core/team.h"

TACFAST_CORE_BEGIN

// A linear head in float64. The Gram matrix is of W centred over the classes, which changes no a_j and costs no digits
// where the classes share an offset; differences are taken of W itself, whose entries no rounding has touched.
struct Head {
    const double* rows;  // (C, stride) W; the columns from dim to stride are zero
    const double* gram;  // (C, C) of the centred rows
    int classes;         // C
    int dim;             // d
    int stride;          // of rows
    double longest;      // the largest row norm of W
    double same;         // rows of W closer than this are equal

    static TACFAST_HD Head of(const PreparedHead& prepared) {
        const double longest = prepared.longest();
        return {prepared.rows(),
                prepared.gram(),
                int(prepared.classes),
                int(prepared.dim),
                int(padded_dim(prepared.dim)),
                longest,
                prepared.same_share * longest};
    }
};

// The constraints towards one class. All arrays have C entries, indexed by class.
struct Constraints {
    int target;      // k
    double* rho;     // right-hand sides
    double* norm2;   // |a_j|^2; 0 for k itself and for constraints that are left out
    double* length;  // |a_j|
    double* weight;  // 1 / |a_j|, or 0: not to be chosen now
};

// |a_j|^2 from the rows, for where the Gram matrix cancels.
TACFAST_HD double direct_norm2(const Head& head, int k, int j) {
    const double* wk = head.rows + k * int64_t(head.stride);
    const double* wj = head.rows + j * int64_t(head.stride);
    return dot_each(head.dim, 0, [=](int, auto at) { return (at(wk) - at(wj)) * (at(wk) - at(wj)); });
}

// out = the sum of factor(i) a_j over the constraints j = index[i], i in [0, count). Synchronises.
template <class Team, class Factor>
TACFAST_HD void combine_rows(const Team& team, const Head& head, const Constraints& c,
                             const int* TACFAST_RESTRICT index, int count, const Factor& factor, double* out) {
    const double* rows = head.rows;
    const int64_t stride = head.stride;
    const double* wk = rows + c.target * stride;
    auto term = [=](int i, auto at) { return factor(i) * (at(wk) - at(rows + index[i] * stride)); };
    team.combine(head.dim, count, 0, term, out);
    team.sync();
}

// How the rows of W constrain a class before any sample is looked at.
struct Screening {
    int clash;  // a class j with the row of k and b_k - b_j < margin, so that k is infeasible; or -1
    bool hard;  // some |a_j| is so much shorter than the rows that the Gram matrix loses its direction
};

// Fills in norm2, weight and rho = gap + margin, where gap(j) is R[k, j]. Rows closer than head.same to w_k are equal
// to it as far as their type can tell: their constraint is decided here, from the bias (C), and then left out.
template <class Team, class Gap>
TACFAST_PART Screening screen(const Team& team, const Head& head, const Constraints& c, const double* bias,
                              double margin, const Gap& gap) {
    const int k = c.target;
    const int64_t C = head.classes;
    const double* TACFAST_RESTRICT own = head.gram + k * C;
    double* TACFAST_RESTRICT norm2 = c.norm2;
    double* TACFAST_RESTRICT length = c.length;
    double* TACFAST_RESTRICT weight = c.weight;
    const double corner = own[k];
    // Three passes, of which the first and the last have no branch.
    team.each(head.classes, [=](int j) { norm2[j] = (corner + head.gram[j * (C + 1)]) - 2 * own[j]; });
    team.each(head.classes, [&](int j) {
        const double total = corner + head.gram[j * (C + 1)];
        if (!(norm2[j] > 1e-4 * total)) norm2[j] = j == k ? 0.0 : direct_norm2(head, k, j);
        const bool kept = norm2[j] > head.same * head.same;
        if (!kept) norm2[j] = 0;
        c.rho[j] = kept ? gap(j) + margin : (j == k ? 0.0 : margin - (bias[k] - bias[j]));
    });
    team.each(head.classes, [=](int j) {
        length[j] = std::sqrt(norm2[j]);
        weight[j] = norm2[j] > 0 ? 1 / length[j] : 0.0;
    });
    team.sync();
    const Best clash =
        team.largest(head.classes, [&](int j) { return c.norm2[j] == 0 && c.rho[j] > 0 ? 1.0 : -INFINITY; });
    const Best shortest = team.largest(head.classes, [&](int j) {
        const double scale = head.gram[k * C + k] + head.gram[j * C + j];
        return c.norm2[j] > 0 && c.norm2[j] < 1e-6 * scale ? 1.0 : -INFINITY;
    });
    return {clash.index, shortest.index >= 0};
}

TACFAST_CORE_END
