// The gap matrix as a thread block works on it, on emulated blocks, against the obvious triple loop, bit for bit.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "core/gap_tile.h"
#include "emulated_team.h"
#include "gap_cells.h"

namespace {

using namespace tacfast;
using namespace tacfast::test;

template <class T>
struct EagerCopy {
    void operator()(core::Pack<T>* to, const T* from, int there) const {
        for (int e = 0; e < core::Pack<T>::size; ++e) to->entry[e] = e < there ? from[e] : T(0);
    }
    void wait() const {}
};

// A copy that arrives as late as it may, as the device's can: when its lane waits.
template <class T>
struct LateCopy {
    struct Order {
        core::Pack<T>* to;
        const T* from;
        int there;
    };
    std::vector<Order>* orders;  // of this lane

    void operator()(core::Pack<T>* to, const T* from, int there) const { orders->push_back({to, from, there}); }
    void wait() const {
        for (const Order& order : *orders) EagerCopy<T>{}(order.to, order.from, order.there);
        orders->clear();
    }
};

template <class T>
struct Logits {
    int64_t n, classes, stride;
    std::vector<T> data;  // ends with the last logit; NaN between the rows
    Logits(int64_t rows, int64_t columns, int64_t padding)
        : n(rows),
          classes(columns),
          stride(columns + padding),
          data(rows == 0 ? 0 : static_cast<size_t>((rows - 1) * stride + columns), kNan<T>) {}
    T& at(int64_t i, int64_t j) { return data[static_cast<size_t>(i * stride + j)]; }
    const T& at(int64_t i, int64_t j) const { return data[static_cast<size_t>(i * stride + j)]; }
    core::GapFold<T> fold(int64_t first, int64_t last) const {
        return {data.data() + first * stride, last - first, stride, static_cast<int>(classes)};
    }
};

// Every third problem has many ties, among them -0; every third has differences of one sign only.
template <class T>
Logits<T> make(int64_t n, int64_t classes, int64_t padding, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    Logits<T> logits(n, classes, padding);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < classes; ++j) {
            double x = normal(random);
            if (seed % 3 == 1) x = std::trunc(x);
            if (seed % 3 == 2) x = std::abs(x) / 100 + 5 * double((j * 7) % classes);
            logits.at(i, j) = static_cast<T>(x);
        }
    return logits;
}

template <class T>
void fold_plainly(const Logits<T>& logits, std::vector<T>& gaps) {
    const int64_t classes = logits.classes;
    for (int64_t i = 0; i < logits.n; ++i)
        for (int64_t j = 0; j < classes; ++j)
            for (int64_t k = 0; k < classes; ++k) {
                T& gap = gaps[static_cast<size_t>(j * classes + k)];
                const T left = logits.at(i, j), right = logits.at(i, k);
                if (!std::isfinite(left) || !std::isfinite(right)) gap = kNan<T>;
                if (left - right > gap) gap = left - right + T(0);
            }
}

template <class T>
using Run = void (*)(const core::GapFold<T>&, int64_t blocks, std::vector<T>& gaps);

// The share of one block, as the kernel takes it.
template <int per_lane, class T, class Team, class Copy>
void run_share(const Team& team, const core::GapFold<T>& fold, core::GapMemory<T>& memory, const Copy& copy,
               int64_t block, int64_t blocks, std::vector<T>& gaps) {
    const int64_t stages = fold.stages();
    const AtomicCells<T> cells{gaps.data()};
    core::GapBlock<T, per_lane, Team, Copy, AtomicCells<T>>{team, fold, memory, copy, cells}.run(
        stages * block / blocks, stages * (block + 1) / blocks);
}

template <class T, int lanes>
void run_blocks(const core::GapFold<T>& fold, int64_t blocks, std::vector<T>& gaps) {
    for (int64_t b = 0; b < blocks; ++b) {
        const auto memory = std::make_unique<core::GapMemory<T>>();
        run_block(lanes, [&](const BlockTeam& team) {
            std::vector<typename LateCopy<T>::Order> orders;
            run_share<(core::kGapThreads + lanes - 1) / lanes>(team, fold, *memory, LateCopy<T>{&orders}, b, blocks,
                                                               gaps);
        });
    }
}

template <class T>
void run_reversed(const core::GapFold<T>& fold, int64_t blocks, std::vector<T>& gaps) {
    const auto memory = std::make_unique<core::GapMemory<T>>();
    for (int64_t b = blocks - 1; b >= 0; --b)
        run_share<core::kGapThreads>(ReversedTeam{}, fold, *memory, EagerCopy<T>{}, b, blocks, gaps);
}

// Two blocks at a time, which raise the same gaps.
template <class T>
void run_concurrently(const core::GapFold<T>& fold, int64_t blocks, std::vector<T>& gaps) {
    auto every_second = [&](int64_t first) {
        const auto memory = std::make_unique<core::GapMemory<T>>();
        for (int64_t b = first; b < blocks; b += 2)
            run_share<core::kGapThreads>(ReversedTeam{}, fold, *memory, EagerCopy<T>{}, b, blocks, gaps);
    };
    std::thread other(every_second, 1);
    every_second(0);
    other.join();
}

template <class T>
void check_problem(const char* name, Run<T> run, const Logits<T>& logits, int64_t blocks) {
    std::vector<T> expected = fresh<T>(logits.classes), gaps = expected;
    fold_plainly(logits, expected);
    run(logits.fold(0, logits.n), blocks, gaps);
    check(same_gaps(expected, gaps), "%s: n=%lld C=%lld in %lld blocks", name, (long long)logits.n,
          (long long)logits.classes, (long long)blocks);

    std::vector<T> running = fresh<T>(logits.classes);
    const int64_t cut = logits.n / 3;
    run(logits.fold(cut, logits.n), 3, running);
    run(logits.fold(0, cut), 1, running);
    check(same_gaps(expected, running), "%s: n=%lld C=%lld in two updates", name, (long long)logits.n,
          (long long)logits.classes);
}

template <class T>
void check_bad_logits(const char* name, Run<T> run, int64_t n, int64_t classes, unsigned seed) {
    const T bads[] = {kNan<T>, kInf<T>, -kInf<T>};
    std::mt19937 random(seed);
    for (int count = 1; count <= 3; ++count) {
        Logits<T> logits = make<T>(n, classes, count, seed);
        std::vector<T> gaps = fresh<T>(classes);
        const Logits<T> finite = make<T>(n, classes, 0, seed + 1);
        run(finite.fold(0, n), 2, gaps);
        std::vector<T> expected = gaps;
        for (int b = 0; b < count; ++b) {  // the first and the last logit among them
            const int64_t i = b == 0 ? 0 : b == 1 ? n - 1 : int64_t(random() % unsigned(n));
            const int64_t j = b == 0 ? 0 : b == 1 ? classes - 1 : int64_t(random() % unsigned(classes));
            logits.at(i, j) = bads[(b + count) % 3];
        }
        for (const Logits<T>* update : {(const Logits<T>*)&logits, &finite}) {
            fold_plainly(*update, expected);
            run(update->fold(0, n), 3, gaps);
            check(same_gaps(expected, gaps), "%s: %d bad logits, n=%lld C=%lld", name, count, (long long)n,
                  (long long)classes);
        }
    }
}

// What a lane read before may have been raised since by another block.
template <class T>
void check_stale_reads() {
    const T ordered[] = {-kInf<T>, T(-2), T(-1), T(0), T(1), kInf<T>, kNan<T>};  // NaN last: it must stay
    for (size_t old = 0; old < std::size(ordered); ++old)
        for (size_t now = old; now < std::size(ordered); ++now)
            for (size_t value = 0; value + 1 < std::size(ordered); ++value) {
                T gap = ordered[now];
                core::raise_gap(AtomicCells<T>{&gap}, 0, ordered[old], ordered[value]);
                const T expected = ordered[std::max(now, value)];
                check(std::isnan(expected) ? std::isnan(gap) : gap == expected, "%g raised to %g, last read as %g",
                      double(ordered[now]), double(ordered[value]), double(ordered[old]));
            }
    for (T value : ordered) {
        T gap = std::copysign(kNan<T>, T(-1));  // as x86 makes them
        core::raise_gap(AtomicCells<T>{&gap}, 0, gap, value);
        check(std::isnan(gap), "-NaN raised to %g", double(value));
    }
}

void check_maps() {
    for (bool diagonal : {false, true}) {
        const core::PairShape shape{diagonal};
        int seen[core::kTileSide][core::kTileSide] = {};
        for (int p = 0; p < shape.micro_pairs(); ++p) {
            const core::MicroPair pair = core::micro_pair(p);
            ++seen[pair.j][pair.k];
            if (diagonal && pair.j != pair.k) ++seen[pair.k][pair.j];
        }
        for (const auto& row : seen)
            for (int count : row) check(count == 1, "every micro-pair once, diagonal=%d", diagonal);
        check(shape.rows() * shape.packs() <= core::kStagePacks, "a stage fits");
    }
    int classes[core::kTileClasses<float>] = {};
    for (int m = 0; m < core::kTileSide; ++m)
        for (int e = 0; e < core::kMicro<float>; ++e) ++classes[core::tile_class<float>(m, e)];
    for (int count : classes) check(count == 1, "every class in one micro-tile");
}

void check_sequence(int64_t n, int classes) {
    const core::GapFold<float> fold{nullptr, n, classes, classes};
    int64_t number = 0;
    bool ok = true;
    for (int j = 0; j < fold.tiles(); ++j)
        for (int k = j; k < fold.tiles(); ++k)
            for (int64_t s = 0; s < fold.stages_of_pair(j == k); ++s, ++number) {
                const core::GapStage stage = fold.stage(number);
                ok = ok && stage.j == j && stage.k == k && stage.number == s;
            }
    check(ok && number == fold.stages(), "sequence of stages, n=%lld C=%d", (long long)n, classes);
}

template <class T>
void check_scalar() {
    check_stale_reads<T>();
    unsigned seed = 0;
    for (int64_t classes : {1, 2, 3, 9, 33, 70, 131})
        for (int64_t n : {0, 1, 7, 100, 333}) {
            const Logits<T> logits = make<T>(n, classes, n % 3, ++seed);
            for (int64_t blocks : {1, 7, 50}) check_problem<T>("reversed", run_reversed<T>, logits, blocks);
            check_problem<T>("concurrent", run_concurrently<T>, logits, 20);
            if (classes * n < 10000) check_problem<T>("3 lanes", run_blocks<T, 3>, logits, 2);
        }
    check_problem<T>("5 lanes", run_blocks<T, 5>, make<T>(333, 131, 1, 3), 4);
    check_problem<T>("128 lanes", run_blocks<T, 128>, make<T>(100, 47, 1, 5), 2);
    for (int64_t classes : {1, 10, 45, 131}) check_bad_logits<T>("reversed", run_reversed<T>, 101, classes, 7);
    check_bad_logits<T>("concurrent", run_concurrently<T>, 101, 45, 8);
    check_bad_logits<T>("3 lanes", run_blocks<T, 3>, 57, 45, 9);
}

}  // namespace

int main() {
    check_maps();
    for (int classes : {1, 40, 41, 200, 1000}) check_sequence(123, classes);
    check_scalar<float>();
    check_scalar<double>();
    return report("gap_tile");
}
