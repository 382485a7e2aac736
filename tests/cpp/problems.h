// Random QPs by family, each hard in its own way.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "core/problem.h"
#include "kkt.h"

namespace tacfast::test {

struct Random {
    std::mt19937_64 engine;
    explicit Random(unsigned seed) : engine(seed) {}
    double normal() { return std::normal_distribution<double>()(engine); }
    double uniform() { return std::uniform_real_distribution<double>()(engine); }
    int below(int n) { return std::uniform_int_distribution<int>(0, n - 1)(engine); }
};

struct Problem {
    const char* family;
    unsigned seed;
    int classes, dim, stride, target;
    std::vector<double> W;  // (C, d)
    std::vector<double> bias;
    std::vector<double> gaps;  // R[k, j]
    double margin = 0;
    bool generic = true;      // one active set is optimal, and no rounding away from another
    bool infeasible = false;  // known to be
    double tol = 1e-10;       // on the residuals
    // Left by prepare():
    std::vector<double> rows{}, gram{};
    double longest = 0, same = 0;

    core::Head head() const { return {rows.data(), gram.data(), classes, dim, stride, longest, same}; }

    // Centres the rows and multiplies them out.
    void prepare() {
        rows.assign(static_cast<size_t>(classes * stride), 0.0);
        for (int x = 0; x < dim; ++x) {
            Real mean = 0;
            for (int j = 0; j < classes; ++j) mean += W[j * dim + x];
            for (int j = 0; j < classes; ++j) rows[j * stride + x] = W[j * dim + x] - double(mean / classes);
        }
        gram.assign(static_cast<size_t>(classes * classes), 0.0);
        for (int i = 0; i < classes; ++i)
            for (int j = 0; j < classes; ++j)
                for (int x = 0; x < dim; ++x) gram[i * classes + j] += rows[i * stride + x] * rows[j * stride + x];
        longest = 0;
        for (int j = 0; j < classes; ++j) longest = std::fmax(longest, double(length_of(W.data() + j * dim, dim)));
        same = 4 * 2.220446049250313e-16 * longest;
    }

    Definition definition() const {
        Definition qp(rows.data(), classes, dim, stride, target);
        for (int j = 0; j < classes; ++j) {
            const bool kept = j != target && qp.length(j) > same;
            const double own = j == target ? 0.0 : margin - (bias[target] - bias[j]);  // where rows are equal
            qp.kept.push_back(kept);
            qp.rho.push_back(kept ? gaps[j] + margin : own);
        }
        return qp;
    }

    // Whether a row equal to the target's wins by its bias.
    bool clash() const {
        const Definition qp = definition();
        for (int j = 0; j < classes; ++j)
            if (!qp.kept[j] && qp.rho[j] > 0) return true;
        return false;
    }
};

// Normal rows, gaps and biases, to be bent by the families.
inline Problem plain(const char* family, unsigned seed, int classes, int dim) {
    Random random(seed);
    Problem p{family, seed, classes, dim, (dim + 7) / 8 * 8, random.below(classes), {}, {}, {}};
    for (int i = 0; i < classes * dim; ++i) p.W.push_back(random.normal());
    for (int j = 0; j < classes; ++j) {
        p.bias.push_back(random.normal());
        p.gaps.push_back(random.normal() + 0.4);
    }
    p.gaps[p.target] = 0;
    return p;
}

// Moves the target's row so far out that every constraint can be met.
inline void make_extreme(Problem& p) {
    double* own = p.W.data() + p.target * p.dim;
    const double length = double(length_of(own, p.dim));
    double furthest = 0;
    for (int j = 0; j < p.classes; ++j) {
        double along = 0;
        for (int x = 0; x < p.dim; ++x) along += p.W[j * p.dim + x] * own[x] / length;
        if (j != p.target) furthest = std::max(furthest, along);
    }
    for (int x = 0; x < p.dim; ++x) own[x] *= (furthest + 1) / length;
}

// Replaces the target's row by a mixture of `many` others plus `distance` times noise.
inline void make_mixture(Problem& p, int many, double distance) {
    Random random(p.seed + 1);
    std::vector<double> own(static_cast<size_t>(p.dim), 0.0), weights;
    double total = 0;
    for (int j = 0; j < many; ++j) total += weights.emplace_back(0.2 + random.uniform());
    for (int i = 0, j = 0; i < many; ++j) {
        if (j == p.target) continue;
        for (int x = 0; x < p.dim; ++x) own[x] += weights[i] / total * p.W[j * p.dim + x];
        ++i;
    }
    for (int x = 0; x < p.dim; ++x) p.W[p.target * p.dim + x] = own[x] + distance * random.normal();
    for (double& gap : p.gaps) gap = 0.5 + std::fabs(gap);
    p.gaps[p.target] = 0;
}

// More classes than dimensions, and a target that can be reached.
inline Problem wide(const char* family, unsigned seed, int classes, int dim, double shift) {
    Problem p = plain(family, seed, classes, dim);
    make_extreme(p);
    for (double& gap : p.gaps) gap += shift;
    p.gaps[p.target] = 0;
    return p;
}

// A row equal to the target's, which loses against it if `clashes`; and two more rows equal to each other.
inline Problem duplicates(unsigned seed, int classes, int dim, bool clashes) {
    Problem p = plain("duplicates", seed, classes, dim);
    const int k = p.target, twin = (k + 1) % classes, third = (k + 2) % classes, fourth = (k + 3) % classes;
    std::copy_n(p.W.begin() + k * dim, dim, p.W.begin() + twin * dim);
    std::copy_n(p.W.begin() + third * dim, dim, p.W.begin() + fourth * dim);
    p.gaps[third] = 2;
    p.gaps[fourth] = 1.5;
    p.gaps[twin] = 1e-5;  // what a matrix product makes of two equal columns
    p.bias[twin] = p.bias[k] + (clashes ? 0.5 : -0.5);
    p.infeasible = clashes;
    return p;
}

// Every constraint twice.
inline Problem ties(unsigned seed, int classes, int dim) {
    Problem p = wide("ties", seed, classes, dim, 0);
    for (int j = 0; j < classes; ++j) {
        const int twin = classes - 1 - j;
        if (twin <= j || twin == p.target || j == p.target) continue;
        std::copy_n(p.W.begin() + j * dim, dim, p.W.begin() + twin * dim);
        p.gaps[twin] = p.gaps[j];
    }
    p.generic = false;
    return p;
}

// A simplex, on which every constraint is active: the multipliers are about 1 / C.
inline Problem simplex(unsigned seed, int classes) {
    Problem p = plain("simplex", seed, classes, classes);
    for (int i = 0; i < classes * classes; ++i) p.W[i] *= 0.02 / classes;
    for (int j = 0; j < classes; ++j) {
        p.W[j * classes + j] += 1;
        p.gaps[j] = 1 + 0.1 / classes * (p.gaps[j] - 0.4);
    }
    p.gaps[p.target] = 0;
    return p;
}

// Columns on ever smaller scales: the active rows come close to depending on one another, again and again.
inline Problem staircase(unsigned seed, int classes, int dim, double step) {
    Problem p = plain("staircase", seed, classes, dim);
    for (int j = 0; j < classes; ++j)
        for (int x = 0; x < dim; ++x) p.W[j * dim + x] *= std::pow(10.0, -step * x);
    p.generic = false;
    p.tol = 1e-4;  // the last steps are below what the Gram matrix resolves
    return p;
}

// Rows of low rank, rounded to float32: next to depending on one another on the scale of that rounding.
inline Problem low_rank(unsigned seed, int classes, int dim, int rank) {
    Problem p = plain("low rank", seed, classes, dim);
    Random random(seed + 1);
    std::vector<double> factor;
    for (int i = 0; i < rank * dim; ++i) factor.push_back(random.normal());
    for (int j = 0; j < classes; ++j) {
        std::vector<double> weights;
        for (int r = 0; r < rank; ++r) weights.push_back(random.normal());
        for (int x = 0; x < dim; ++x) {
            double sum = 0;
            for (int r = 0; r < rank; ++r) sum += weights[r] * factor[r * dim + x];
            p.W[j * dim + x] = float(sum);
        }
    }
    for (double& gap : p.gaps) gap = 0.5 + std::fabs(gap);
    p.gaps[p.target] = 0;
    p.generic = false;
    return p;
}

// Constraints towards class 0 that do not see one another: each violated one is taken up once, and none is let go.
inline Problem orthogonal(unsigned seed, int classes) {
    Problem p = plain("orthogonal", seed, classes, classes);
    Random random(seed + 1);
    p.target = 0;
    std::fill(p.W.begin(), p.W.end(), 0.0);
    for (int j = 1; j < classes; ++j) p.W[j * classes + j] = -1 - random.uniform();
    p.gaps[0] = 0;
    return p;
}

inline Problem one_dimension(unsigned seed, int classes) {
    Problem p = plain("one dimension", seed, classes, 1);
    p.generic = false;
    return p;
}

inline Problem satisfied(unsigned seed, int classes, int dim) {
    Problem p = plain("satisfied", seed, classes, dim);
    for (double& gap : p.gaps) gap = -std::fabs(gap);
    return p;
}

// One class inside the hull of `many` others, or next to it.
inline Problem mixture(const char* family, unsigned seed, int classes, int dim, int many, double distance) {
    Problem p = plain(family, seed, classes, dim);
    make_mixture(p, many, distance);
    p.infeasible = distance == 0;
    p.generic = false;
    return p;
}

// All families for one seed, prepared.
inline std::vector<Problem> families(unsigned seed) {
    std::vector<Problem> all;
    for (int classes : {3, 5, 10, 21}) all.push_back(plain("well conditioned", seed, classes, classes + 11));
    all.push_back(plain("square", seed, 12, 12));
    all.push_back(wide("rank deficient", seed, 30, 5, 0));
    all.push_back(wide("rank deficient", seed, 17, 9, 0.5));
    all.push_back(wide("mixed sign", seed, 20, 8, -0.9));
    all.push_back(wide("margin", seed, 14, 6, -0.5));
    all.back().margin = 0.7;
    all.push_back(duplicates(seed, 9, 12, false));
    all.push_back(duplicates(seed, 9, 12, true));
    all.push_back(mixture("near the hull", seed, 8, 13, 7, 1e-6));
    all.push_back(mixture("near the hull", seed, 11, 4, 4, 1e-6));
    all.push_back(mixture("in the hull", seed, 8, 13, 6, 0));
    all.push_back(mixture("in the hull", seed, 20, 5, 5, 0));
    all.push_back(satisfied(seed, 10, 6));
    all.push_back(simplex(seed, 24));
    all.push_back(plain("single constraint", seed, 2, 7));
    all.push_back(one_dimension(seed, 6));
    all.push_back(ties(seed, 13, 7));
    all.push_back(low_rank(seed, 6, 4, 1));
    all.push_back(low_rank(seed, 20, 12, 3));
    for (double step : {0.5, 1.0, 2.0, 3.0, 5.0}) all.push_back(staircase(seed, 18, 5, step));
    for (Problem& p : all) p.prepare();
    return all;
}

}  // namespace tacfast::test
