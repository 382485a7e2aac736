// The gap matrix from latents as a thread block works on it, on emulated blocks: bit for bit against logits multiplied
// in the same order and the obvious triple loop, and within rounding against logits in extended precision.
#include <algorithm>
#include <memory>
#include <random>
#include <thread>

#include "check.h"
#include "core/fused_tile.h"
#include "emulated_team.h"
#include "gap_cells.h"

namespace {

using namespace tacfast;
using namespace tacfast::test;

// A bfloat16, for a type of latents that is narrower than the product.
struct Brain {
    uint16_t upper;
    Brain() = default;
    explicit Brain(double x) : upper(static_cast<uint16_t>(std::bit_cast<uint32_t>(float(x)) >> 16)) {}
    explicit operator float() const { return std::bit_cast<float>(uint32_t(upper) << 16); }
};

template <class T, class S>
struct Problem {
    int64_t n, dim, stride, weight_stride;
    int classes;
    std::vector<S> latents;  // ends with the last latent; NaN between the rows
    std::vector<T> weights, offset;

    // Every other problem has many ties.
    Problem(int64_t n_, int64_t dim_, int classes_, int64_t padding, unsigned seed)
        : n(n_), dim(dim_), stride(dim + padding), weight_stride(dim + padding / 2), classes(classes_) {
        std::mt19937 random(seed);
        std::normal_distribution<double> normal;
        const auto next = [&] { return seed % 2 == 1 ? std::trunc(2 * normal(random)) : normal(random); };
        latents.assign(size_t(n == 0 ? 0 : (n - 1) * stride + dim), S(kNan<T>));
        weights.assign(size_t((classes - 1) * weight_stride + dim), kNan<T>);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t x = 0; x < dim; ++x) latents[size_t(i * stride + x)] = S(next());
        for (int64_t j = 0; j < classes; ++j) {
            for (int64_t x = 0; x < dim; ++x) weights[size_t(j * weight_stride + x)] = T(next());
            offset.push_back(T(next()));
        }
    }

    T latent(int64_t i, int64_t x) const { return static_cast<T>(latents[size_t(i * stride + x)]); }
    T weight(int64_t j, int64_t x) const { return weights[size_t(j * weight_stride + x)]; }

    core::FusedFold<T, S> fold() const {
        return {latents.data(), n,
                int(dim),       stride,
                weights.data(), weight_stride,
                offset.data(),  core::FusedShape<T>::of(classes)};
    }

    // The logits in the order of the kernel, or with more digits.
    template <class Wide>
    std::vector<Wide> logits() const {
        std::vector<Wide> result;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < classes; ++j) {
                Wide sum = 0;
                for (int64_t x = 0; x < dim; ++x) sum = std::fma(Wide(latent(i, x)), Wide(weight(j, x)), sum);
                result.push_back(sum + Wide(offset[size_t(j)]));
            }
        return result;
    }

    // The gaps after these logits.
    template <class Wide>
    void fold_plainly(const std::vector<Wide>& values, std::vector<Wide>& gaps) const {
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < classes; ++j)
                for (int64_t k = 0; k < classes; ++k) {
                    Wide& gap = gaps[size_t(j * classes + k)];
                    const Wide left = values[size_t(i * classes + j)], right = values[size_t(i * classes + k)];
                    if (!std::isfinite(left) || !std::isfinite(right)) gap = kNan<Wide>;
                    if (left - right > gap) gap = left - right + 0;
                }
    }
};

// Copies at once.
template <class T, class S>
struct EagerCopy {
    template <class From>
    static void copy(core::Pack<T>* to, const From* from, int there) {
        for (int e = 0; e < core::Pack<T>::size; ++e) to->entry[e] = e < there ? static_cast<T>(from[e]) : T(0);
    }
    void latents(core::Pack<T>* to, const S* from, int there) const { copy(to, from, there); }
    void weights(core::Pack<T>* to, const T* from, int there) const { copy(to, from, there); }
    void wait() const {}
};

// Copies that arrive as late as they may, as the device's can: when their lane waits.
template <class T, class S>
struct LateCopy {
    struct Orders {
        std::vector<std::tuple<core::Pack<T>*, const S*, int>> latents;
        std::vector<std::tuple<core::Pack<T>*, const T*, int>> weights;
    };
    Orders* orders;  // of this lane

    void latents(core::Pack<T>* to, const S* from, int there) const { orders->latents.emplace_back(to, from, there); }
    void weights(core::Pack<T>* to, const T* from, int there) const { orders->weights.emplace_back(to, from, there); }
    void wait() const {
        for (const auto& [to, from, there] : orders->latents) EagerCopy<T, S>::copy(to, from, there);
        for (const auto& [to, from, there] : orders->weights) EagerCopy<T, S>::copy(to, from, there);
        *orders = {};
    }
};

// The memory of one block; nothing that nobody wrote is a number.
template <class T>
std::vector<core::Pack<T>> block_memory(const core::FusedShape<T>& shape) {
    core::Pack<T> nothing;
    for (T& entry : nothing.entry) entry = kNan<T>;
    return std::vector<core::Pack<T>>(size_t(shape.memory_packs()), nothing);
}

template <class T, class S>
using Run = void (*)(const core::FusedFold<T, S>&, int blocks, T* cells);

template <class T, class S, int lanes>
void run_blocks(const core::FusedFold<T, S>& fold, int blocks, T* cells) {
    for (int b = 0; b < blocks; ++b) {
        auto memory = block_memory(fold.shape);
        run_block(lanes, [&](const BlockTeam& team) {
            typename LateCopy<T, S>::Orders orders;
            const LateCopy<T, S> copy{&orders};
            const AtomicCells<T> shared{cells};
            constexpr int per_lane = (core::kFusedThreads + lanes - 1) / lanes;
            core::FusedBlock<T, S, per_lane, BlockTeam, LateCopy<T, S>, AtomicCells<T>>{team, fold, memory.data(), copy,
                                                                                        shared}
                .run(b, blocks);
        });
    }
}

template <class T, class S>
void run_reversed(const core::FusedFold<T, S>& fold, int first, int blocks, int step, T* cells) {
    auto memory = block_memory(fold.shape);
    const ReversedTeam team;
    const EagerCopy<T, S> copy;
    const AtomicCells<T> shared{cells};
    for (int b = first; b < blocks; b += step)
        core::FusedBlock<T, S, core::kFusedThreads, ReversedTeam, EagerCopy<T, S>, AtomicCells<T>>{
            team, fold, memory.data(), copy, shared}
            .run(b, blocks);
}

template <class T, class S>
void run_alone(const core::FusedFold<T, S>& fold, int blocks, T* cells) {
    run_reversed(fold, 0, blocks, 1, cells);
}

// Two blocks at a time, which raise the same cells.
template <class T, class S>
void run_concurrently(const core::FusedFold<T, S>& fold, int blocks, T* cells) {
    std::thread other([&] { run_reversed(fold, 1, blocks, 2, cells); });
    run_reversed(fold, 0, blocks, 2, cells);
    other.join();
}

template <class T, class S>
void update(const Problem<T, S>& problem, Run<T, S> run, int blocks, std::vector<T>& gaps) {
    const auto fold = problem.fold();
    std::vector<T> cells(size_t(fold.shape.cells()));
    std::memset(cells.data(), 0xff, cells.size() * sizeof(T));
    run(fold, blocks, cells.data());
    for (int j = 0; j < problem.classes; ++j)
        for (int k = 0; k < problem.classes; ++k) {
            T& gap = gaps[size_t(j) * size_t(problem.classes) + size_t(k)];
            gap = core::fused_gap(fold.shape, cells.data(), j, k, gap);
        }
}

template <class T, class S>
void check_problem(const char* name, Run<T, S> run, const Problem<T, S>& problem, int blocks) {
    std::vector<T> expected = fresh<T>(problem.classes), gaps = expected;
    problem.fold_plainly(problem.template logits<T>(), expected);
    update(problem, run, blocks, gaps);
    check(same_gaps(expected, gaps), "%s: n=%d d=%d C=%d in %d blocks", name, int(problem.n), int(problem.dim),
          problem.classes, blocks);
}

// Two updates, of which the second has bad latents; a third cannot mend them.
template <class T, class S>
void check_updates(const char* name, Run<T, S> run, int64_t n, int64_t dim, int classes) {
    const Problem<T, S> first(n, dim, classes, 2, 8);
    Problem<T, S> bad(n, dim, classes, 0, 9);
    bad.weights = first.weights;
    bad.weight_stride = first.weight_stride;
    bad.weights[size_t((classes / 2) * bad.weight_stride)] = std::numeric_limits<T>::max();  // one class overflows
    bad.latents[size_t((n - 1) * bad.stride)] = S(1e30);
    std::vector<T> gaps = fresh<T>(classes), expected = gaps;
    for (const Problem<T, S>* problem : {&first, (const Problem<T, S>*)&bad, &first}) {
        problem->fold_plainly(problem->template logits<T>(), expected);
        update(*problem, run, 3, gaps);
        check(same_gaps(expected, gaps), "%s: bad latents, n=%d d=%d C=%d", name, int(n), int(dim), classes);
    }
    const auto spoiled = std::count_if(gaps.begin(), gaps.end(), [](T gap) { return std::isnan(gap); });
    check(spoiled == 2 * classes - 1, "%s: one class of %d is spoiled, not %d gaps", name, classes, int(spoiled));
    bad.latents[0] = S(kNan<T>);
    update(bad, run, 1, gaps);
    check(std::all_of(gaps.begin(), gaps.end(), [](T gap) { return std::isnan(gap); }), "%s: a NaN spoils all", name);
}

template <class T, class S>
void check_rounding(const Problem<T, S>& problem) {
    std::vector<T> gaps = fresh<T>(problem.classes);
    std::vector<long double> exact = fresh<long double>(problem.classes);
    problem.fold_plainly(problem.template logits<long double>(), exact);
    update(problem, run_alone<T, S>, 2, gaps);
    double largest = 1, off = 0;
    for (size_t at = 0; at < gaps.size(); ++at) {
        largest = std::fmax(largest, std::fabs(double(exact[at])));
        off = std::fmax(off, std::fabs(double(exact[at] - gaps[at])));
    }
    const double rounding = std::numeric_limits<T>::epsilon();
    check(off <= rounding * std::sqrt(double(problem.dim)) * largest, "n=%d d=%d C=%d: off by %g", int(problem.n),
          int(problem.dim), problem.classes, off);
}

template <class T>
void check_maps() {
    for (int classes = 1; classes <= core::kFusedClasses<T>; ++classes) {
        const auto shape = core::FusedShape<T>::of(classes);
        bool ok = shape.squares() <= core::kFusedThreads && shape.row_groups() >= core::kLeastRowGroups &&
                  shape.width() >= classes && shape.logits().pitch() % 2 == 1 && shape.stage().pitch() % 2 == 1 &&
                  shape.memory_packs() * 16 <= 72 << 10;
        for (int u = 0; u < shape.units(); ++u) {
            const core::FusedUnit unit = shape.unit(u);
            ok = ok && shape.number(unit) == u && unit.right < shape.groups && unit.left < 2 * unit.right + 2;
        }
        std::vector<int> taken(size_t(shape.cells()));
        for (int j = 0; j < classes; ++j) {
            for (int k = 0; k < classes; ++k) ++taken[size_t(shape.cell_of(j, k))];
            ++taken[size_t(shape.spoiled(j))];
        }
        ok = ok && std::all_of(taken.begin(), taken.end(), [](int count) { return count <= 1; });
        check(ok, "maps for %d classes", classes);
    }
}

template <class T, class S>
void check_types() {
    unsigned seed = 0;
    for (int classes : {2, 3, 9, 33, 70, 113})
        for (int64_t dim : {1, 17, 45})
            for (int64_t n : {1, 66, 259}) {
                const Problem<T, S> problem(n, dim, classes, n % 4, ++seed);
                check_problem<T, S>("reversed", run_alone<T, S>, problem, 1 + int(seed % 3));
                if (seed % 4 == 0) check_problem<T, S>("concurrent", run_concurrently<T, S>, problem, 4);
                if (seed % 5 == 0) check_problem<T, S>("3 lanes", run_blocks<T, S, 3>, problem, 2);
            }
    check_problem<T, S>("67 lanes", run_blocks<T, S, 67>, Problem<T, S>(70, 19, 126, 1, 5), 2);
    for (int classes : {2, 10, 45}) check_updates<T, S>("reversed", run_alone<T, S>, 301, 21, classes);
    check_updates<T, S>("concurrent", run_concurrently<T, S>, 301, 5, 45);
    check_updates<T, S>("3 lanes", run_blocks<T, S, 3>, 67, 5, 45);
    check_rounding(Problem<T, S>(150, 301, 31, 0, 2));
}

}  // namespace

int main() {
    check_maps<float>();
    check_maps<double>();
    check_types<float, float>();
    check_types<double, double>();
    check_types<float, Brain>();
    check_problem<float, float>("all classes", run_alone<float, float>, Problem<float, float>(65, 9, 256, 0, 4), 2);
    check_problem<double, double>("all classes", run_alone<double, double>, Problem<double, double>(33, 9, 128, 0, 4),
                                  2);
    return report("fused_tile");
}
