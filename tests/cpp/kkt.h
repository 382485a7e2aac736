// What "solved" means, in long double and straight from the definition: nothing of core/ is used to check core/.
#pragma once

#include <cmath>
#include <vector>

namespace tacfast::test {

using Real = long double;

struct Residuals {
    Real primal, dual, stationarity, gap;
    bool within(Real tol) const { return primal <= tol && dual <= tol && stationarity <= tol && gap <= tol; }
};

// Rows of W towards one class; rho and kept are for the caller to fill in.
struct Definition {
    const double* rows;  // (C, stride)
    int classes, dim, stride, target;
    std::vector<Real> lengths;  // (C)
    std::vector<Real> rho;      // (C)
    std::vector<bool> kept;     // (C) false for the target and for rows equal to its row

    Definition(const double* rows_, int classes_, int dim_, int stride_, int target_)
        : rows(rows_), classes(classes_), dim(dim_), stride(stride_), target(target_) {
        for (int j = 0; j < classes; ++j) {
            Real sum = 0;
            for (int x = 0; x < dim; ++x) sum += a(j, x) * a(j, x);
            lengths.push_back(std::sqrt(sum));
        }
    }

    Real a(int j, int x) const { return Real(rows[target * stride + x]) - Real(rows[j * stride + x]); }
    Real length(int j) const { return lengths[j]; }

    template <class T>
    Real product(int j, const T* s) const {
        Real sum = 0;
        for (int x = 0; x < dim; ++x) sum += a(j, x) * Real(s[x]);
        return sum;
    }
};

inline Real share(Real part, Real whole) { return part == 0 ? 0 : part / whole; }

template <class T>
Real length_of(const T* x, int n) {
    Real sum = 0;
    for (int i = 0; i < n; ++i) sum += Real(x[i]) * Real(x[i]);
    return std::sqrt(sum);
}

// Sums over the multipliers: A'lambda, sum |lambda||a|, rho'lambda, |rho|'|lambda|, max (-lambda)+ |a|.
struct Combination {
    std::vector<Real> vector;
    Real terms = 0, value = 0, size = 0, lowest = 0;
};

template <class T>
Combination combine(const Definition& qp, const T* lambda) {
    Combination sum{std::vector<Real>(static_cast<size_t>(qp.dim), Real(0))};
    for (int j = 0; j < qp.classes; ++j) {
        const Real l = lambda[j], length = qp.kept[j] ? qp.length(j) : 0;
        sum.value += l * qp.rho[j];
        sum.size += std::fabs(l * qp.rho[j]);
        if (length == 0) continue;
        for (int x = 0; x < qp.dim; ++x) sum.vector[x] += l * qp.a(j, x);
        sum.terms += std::fabs(l) * length;
        sum.lowest = std::fmax(sum.lowest, -l * length);
    }
    return sum;
}

template <class T>
Residuals residuals(const Definition& qp, const T* s, const T* lambda) {
    const Real norm = length_of(s, qp.dim);
    const Combination sum = combine(qp, lambda);
    Residuals result{0, share(sum.lowest, sum.terms), 0, 0};
    for (int j = 0; j < qp.classes; ++j) {
        if (!qp.kept[j]) continue;
        const Real missing = qp.rho[j] - qp.product(j, s);
        if (!(missing <= 0)) {  // a NaN counts
            const Real violation = missing / (std::fabs(qp.rho[j]) + qp.length(j) * norm);
            if (!(violation <= result.primal)) result.primal = violation;
        }
    }
    Real off = 0;
    for (int x = 0; x < qp.dim; ++x) off += (Real(s[x]) - sum.vector[x]) * (Real(s[x]) - sum.vector[x]);
    result.stationarity = share(std::sqrt(off), sum.terms);
    result.gap = share(std::fabs(norm * norm - sum.value), norm * norm + sum.size);
    return result;
}

// Whether the multipliers prove that no point satisfies the constraints.
template <class T>
bool proves_infeasible(const Definition& qp, const T* lambda, Real tol) {
    const Combination sum = combine(qp, lambda);
    const Real off = length_of(sum.vector.data(), qp.dim);
    return sum.terms > 0 && sum.lowest <= 0 && off <= tol * sum.terms && sum.value > 1e-14L * sum.size;
}

}  // namespace tacfast::test
