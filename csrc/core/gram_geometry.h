// The active set seen through M = W W': cheap (nothing depends on d), and accurate while no constraint lies nearly in
// the span of the active ones. Where that is in doubt it says `ambiguous`, and the rows decide (row_geometry.h).
//
// It keeps H, the explicit inverse of the active block of G[i, j] = a_i'a_j: products with H and its rank-one updates
// have no serial chain, which suits a warp and a vector unit alike.
#pragma once

#include "core/active_set.h"

TACFAST_CORE_BEGIN

// Below this share of |a_p|^2 the squared distance may be all rounding.
constexpr double kAmbiguous = 1e-9;
constexpr int kFirstStride = 32;

struct GramGeometry {
    Head head;
    double* first;    // H while the active set is small, and after that
    double* wide;     //
    double* scratch;  // (capacity)
    double* inverse;  // H, as many rows and columns as the active set, row-major with `stride`
    int stride;       // a multiple of kPack

    TACFAST_HD GramGeometry(const Head& head_, double* first_, double* wide_, double* scratch_)
        : head(head_), first(first_), wide(wide_), scratch(scratch_), inverse(first_), stride(first_stride()) {}

    // The sides of the squares that `first` and `wide` must have room for.
    static TACFAST_HD int64_t first_side(int64_t capacity) { return capacity < kFirstStride ? capacity : kFirstStride; }
    static TACFAST_HD int64_t side(int64_t capacity) {
        int64_t side = kFirstStride;
        while (side < capacity) side *= 2;
        return side > kFirstStride ? side : 0;
    }

    TACFAST_HD int first_stride() const {
        const int most = packed((head.classes - 1 < head.dim ? head.classes - 1 : head.dim) + 1);
        return int(first_side(most));
    }

    template <class Team>
    TACFAST_HD void reset(const Team&) {
        inverse = first;
        stride = first_stride();
    }

    // G[i, j] for the target k.
    TACFAST_HD double product(int k, int i, int j) const {
        const int64_t C = head.classes;
        const double* gram = head.gram;
        return (gram[k * C + k] - gram[k * C + i]) - (gram[k * C + j] - gram[i * C + j]);
    }

    template <class Team>
    TACFAST_HD Projection project(const Team& team, const Constraints& c, ActiveSet& set, int p) {
        const int m = set.size;
        const int64_t C = head.classes;
        const double* own = head.gram + c.target * C;
        const double* other = head.gram + p * C;
        const double corner = own[c.target] - own[p];
        team.each(m, [&](int i) { scratch[i] = corner - (own[set.index[i]] - other[set.index[i]]); });
        team.sync();
        multiply(team, m, scratch, set.coef);
        const double inside = team.sum(m, [&](int i) { return scratch[i] * set.coef[i]; });
        const double distance2 = c.norm2[p] - inside;
        // d independent constraints span everything; there is no room for another, whatever rounding says.
        return {distance2, !(m < head.dim && distance2 > kAmbiguous * c.norm2[p])};
    }

    template <class Team>
    TACFAST_HD void move(const Team&, double) {}  // evaluate() starts from the multipliers

    template <class Team>
    TACFAST_HD void insert(const Team& team, ActiveSet& set, int, double distance2) {
        const int m = set.size;
        if (m == stride) widen(team, m);
        const double scale = 1 / distance2;
        const double* TACFAST_RESTRICT coef = set.coef;
        double* TACFAST_RESTRICT H = inverse;
        const int64_t step = stride;
        team.grid(m, packed(m), [=](int i, int j) { H[i * step + j] += scale * coef[i] * coef[j]; });
        if (team.lanes() > 1) clear_margin(team, m);
        team.sync();
        team.each(m, [=](int j) { H[m * step + j] = H[j * step + m] = -scale * coef[j]; });
        if (team.rank() == 0) H[m * step + m] = scale;
        team.sync();
    }

    template <class Team>
    TACFAST_HD void remove(const Team& team, ActiveSet& set, int q) {
        const int last = set.size - 1;
        team.each(set.size, [&](int i) { scratch[i] = inverse[i * int64_t(stride) + q]; });
        team.sync();
        const double scale = 1 / scratch[q];
        const double* TACFAST_RESTRICT column = scratch;
        double* TACFAST_RESTRICT H = inverse;
        const int64_t step = stride;
        team.grid(set.size, set.size, [=](int i, int j) { H[i * step + j] -= column[i] * scale * column[j]; });
        team.sync();
        team.each(set.size, [=](int i) {
            for (int j = q; j < last; ++j) H[i * step + j] = H[i * step + j + 1];
        });
        team.sync();
        team.each(last, [&](int j) {
            double* entry = inverse + j;
            for (int i = q; i < last; ++i) entry[i * int64_t(stride)] = entry[(i + 1) * int64_t(stride)];
        });
        team.sync();
    }

    // Multipliers for which every active constraint holds with equality, refined once.
    template <class Team>
    TACFAST_HD void solve(const Team& team, const Constraints& c, ActiveSet& set) {
        const int m = set.size;
        team.each(m, [&](int i) { scratch[i] = c.rho[set.index[i]]; });
        team.sync();
        multiply(team, m, scratch, set.lambda);
        team.sync();
        team.each(m, [&](int i) {
            double sum = 0;
            for (int j = 0; j < m; ++j) sum += product(c.target, set.index[i], set.index[j]) * set.lambda[j];
            set.coef[i] = scratch[i] - sum;
        });
        team.sync();
        multiply(team, m, set.coef, scratch);
        team.each(m, [&](int i) { set.lambda[i] += scratch[i]; });
        team.sync();
    }

    // products[j] = a_j's = u_k - u_j with u = M v, v = (sum of lambda) e_k - lambda. The target takes the place behind
    // the active constraints for it.
    template <class Team>
    TACFAST_HD void evaluate(const Team& team, const Constraints& c, ActiveSet& set) {
        const int64_t C = head.classes;
        const int m = set.size, k = c.target;
        const double* gram = head.gram;
        const double* own = gram + k * C;
        const double total = team.sum(m, [&](int i) { return set.lambda[i]; });
        const double at_target = total * own[k] - team.sum(m, [&](int i) { return set.lambda[i] * own[set.index[i]]; });
        if (team.rank() == 0) {
            set.index[m] = k;
            set.lambda[m] = -total;
        }
        team.sync();
        const double* TACFAST_RESTRICT factor = set.lambda;
        const int* TACFAST_RESTRICT index = set.index;
        auto term = [=](int i, auto at) { return factor[i] * at(gram + index[i] * C); };
        team.combine(head.classes, m + 1, at_target, term, set.products);
        team.sync();
        const double* u = set.products;
        const double norm2 = team.sum(m, [&](int a) { return set.lambda[a] * u[set.index[a]]; });
        set.norm = norm2 > 0 ? std::sqrt(norm2) : 0.0;
    }

  private:
    // Gives a value to the entries around row and column m that loops of whole vectors run over. What it is does not
    // matter, but tools that look for reads of unwritten memory complain if there is none; a CPU has no such tool here.
    template <class Team>
    TACFAST_HD void clear_margin(const Team& team, int m) const {
        double* H = inverse;
        const int64_t step = stride;
        if (m == packed(m)) team.grid(m, kPack, [=](int i, int j) { H[i * step + m + j] = 0; });
        team.each(packed(m + 1) - (m + 1), [=](int j) { H[m * step + m + 1 + j] = 0; });
    }

    // y = H x; by columns, which are rows, since a vector of sums beats a sum of vectors.
    template <class Team>
    TACFAST_HD void multiply(const Team& team, int m, const double* TACFAST_RESTRICT x, double* y) const {
        const double* columns = inverse;
        const int64_t step = stride;
        team.combine(packed(m), m, 0, [=](int j, auto at) { return x[j] * at(columns + j * step); }, y);
    }

    // Spreads the rows of H to the next larger stride, from the last to the first, so that none is overwritten.
    template <class Team>
    TACFAST_HD void widen(const Team& team, int m) {
        const int next = stride < kFirstStride ? kFirstStride : 2 * stride;
        for (int i = m - 1; i >= 0; --i) {
            const double* from = inverse + i * int64_t(stride);
            double* to = wide + i * int64_t(next);
            team.each(m, [&](int j) { to[j] = from[j]; });
            team.sync();
        }
        inverse = wide;
        stride = next;
    }
};

TACFAST_CORE_END
