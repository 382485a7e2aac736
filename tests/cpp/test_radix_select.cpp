// Radix selection (core/radix_select.h) on every team against std::nth_element, and the trimmed gaps made of it, whole
// and in slices, against their definition: bit for bit.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "core/radix_select.h"
#include "emulated_team.h"

namespace {

using namespace tacfast;
using namespace tacfast::test;

// Runs f(team) on each kind of team in turn, and prepare() before each.
template <class Prepare, class F>
void on_every_team(const Prepare& prepare, const F& f) {
    prepare();
    f(core::SerialTeam{});
    prepare();
    f(ReversedTeam{});
    prepare();
    run_block(5, f);
}

// How the numbers look; the logits of test_trimmed_gaps likewise.
enum Kind { normal, ties, constant, tiny_and_huge, kinds };

template <class T>
T draw(Kind kind, std::mt19937& random) {
    const double x = std::normal_distribution<double>()(random);
    if (kind == ties) return static_cast<T>(std::copysign(std::floor(std::abs(2 * x)), x));  // among them -0
    if (kind == constant) return T(-3);
    if (kind == tiny_and_huge) {
        const T scales[] = {T(0), std::numeric_limits<T>::denorm_min(), T(1e-30), T(1),
                            std::numeric_limits<T>::max() / 16};
        return static_cast<T>(x) * scales[random() % 5];
    }
    return static_cast<T>(x);
}

template <class T>
void test_keys() {
    std::mt19937 random(5);
    std::vector<T> numbers = {T(0), std::numeric_limits<T>::max(), std::numeric_limits<T>::lowest(),
                              std::numeric_limits<T>::infinity(), -std::numeric_limits<T>::infinity()};
    for (int i = 0; i < 200; ++i) numbers.push_back(draw<T>(static_cast<Kind>(i % kinds), random) + T(0));
    for (T a : numbers) {
        check(same_bits(double(core::number_of<T>(core::key_of(a))), double(a)), "key and back: %g", double(a));
        for (T b : numbers)
            check((a < b) == (core::key_of(a) < core::key_of(b)), "order of %g and %g", double(a), double(b));
        core::Key<T> built = 0;
        for (int pass = 0; pass < core::kPasses<T>; ++pass) {
            check(core::same_beginning<T>(built, core::key_of(a), pass), "beginning of %g", double(a));
            built |= core::Key<T>(core::digit_of<T>(core::key_of(a), pass)) << core::lowest_bit<T>(pass);
        }
        check(built == core::key_of(a), "digits of %g", double(a));
    }
}

template <class T>
void test_select(Kind kind, int n, int columns, unsigned seed) {
    std::mt19937 random(seed);
    const int width = core::tile_width(columns);
    std::vector<T> numbers(static_cast<size_t>(n * columns));
    for (T& x : numbers) x = draw<T>(kind, random) + T(0);
    auto number = [&](int64_t i, int column) { return numbers[static_cast<size_t>(i * columns + column)]; };
    for (int rank : {1, 1 + n / 7, 1 + n / 2, n}) {
        std::vector<T> expected;
        for (int column = 0; column < columns; ++column) {
            std::vector<T> values;
            for (int i = 0; i < n; ++i) values.push_back(number(i, column));
            std::nth_element(values.begin(), values.begin() + rank - 1, values.end(), std::greater<T>());
            expected.push_back(values[static_cast<size_t>(rank - 1)]);
        }
        std::unique_ptr<core::RadixTile<T>> tile;
        std::vector<T> found;
        auto fresh = [&] {
            if (tile != nullptr) check(same_bits(found, expected), "rank %d of %d, %d columns", rank, n, columns);
            tile.reset(new core::RadixTile<T>);  // not initialised: memory as a block finds it
            found.assign(static_cast<size_t>(columns), T(0));
        };
        on_every_team(fresh, [&](const auto& team) {
            core::radix_select<T>(team, n, static_cast<uint32_t>(rank), width, columns, *tile, number);
            team.each(columns, [&](int column) {
                found[static_cast<size_t>(column)] = core::number_of<T>(tile->found[column]);
            });
        });
        fresh();
    }
}

// As many lanes as several rows of a tile take, and three to spare.
template <class T>
void test_wide_block() {
    constexpr int n = 101, columns = 20, width = core::kTallyLanes;
    auto number = [](int64_t i, int column) { return static_cast<T>((i * 37 + column) % n); };
    std::unique_ptr<core::RadixTile<T>> tile(new core::RadixTile<T>);
    run_block(2 * width + 3,
              [&](const auto& team) { core::radix_select<T>(team, n, 31, width, columns, *tile, number); });
    for (int column = 0; column < columns; ++column)
        check(core::number_of<T>(tile->found[column]) == T(n - 31), "column %d of a wide block", column);
}

// Logits with a few classes that no row is of, their row addresses, and the gaps by definition.
template <class T>
struct Case {
    int n, classes;
    std::vector<T> logits;
    std::vector<int64_t> rows;
    std::vector<uint32_t> predicted;
    std::vector<T> untrimmed;

    Case(Kind kind, int n_, int classes_, unsigned seed)
        : n(n_), classes(classes_), logits(size_t(n_ * classes_)), predicted(size_t(classes_)) {
        std::mt19937 random(seed);
        for (int i = 0; i < n; ++i)
            for (int j = 0; j < classes; ++j)
                logits[size_t(i * classes + j)] = draw<T>(kind, random) - (j % 3 == 1 && kind == normal ? T(5) : T(0));
        for (int i = 0; i < n; ++i) {
            const T* row = &logits[size_t(i * classes)];
            rows.push_back(reinterpret_cast<int64_t>(row));
            ++predicted[size_t(std::max_element(row, row + classes) - row)];
        }
        untrimmed = statistic([](int64_t) { return int64_t(0); });
        for (int k = 0; k < classes; ++k)  // what update_gaps leaves of a class with a logit that is not finite
            if (classes > 2) gap(untrimmed, 1, k) = gap(untrimmed, k, 1) = std::numeric_limits<T>::quiet_NaN();
    }

    T& gap(std::vector<T>& gaps, int j, int k) const { return gaps[size_t(j * classes + k)]; }

    // The gaps with so many of the largest left out: left_out(rows of the class).
    template <class LeftOut>
    std::vector<T> statistic(const LeftOut& left_out) const {
        std::vector<T> gaps(size_t(classes * classes)), values(static_cast<size_t>(n));
        for (int j = 0; j < classes; ++j)
            for (int k = 0; k < classes; ++k) {
                for (int i = 0; i < n; ++i)
                    values[size_t(i)] = logits[size_t(i * classes + j)] - logits[size_t(i * classes + k)] + T(0);
                const auto at = values.begin() + left_out(int64_t(predicted[size_t(j)]));
                std::nth_element(values.begin(), at, values.end(), std::greater<T>());
                gap(gaps, j, k) = *at;
            }
        return gaps;
    }

    std::vector<T> trimmed(double trim) const {
        std::vector<T> gaps =
            statistic([&](int64_t own) { return static_cast<int64_t>(std::floor(trim * static_cast<double>(own))); });
        for (size_t at = 0; at < gaps.size(); ++at)
            if (std::isnan(untrimmed[at])) gaps[at] = untrimmed[at];
        return gaps;
    }
};

// As the kernels do it: a block per tile, or one per tile and slice, all slices of a pass at the same time.
template <class T, class Block>
void trim_whole(const core::TrimTask<T>& task, const Block& run) {
    for (int64_t tile = 0; tile < core::tile_count(task.classes); ++tile) {
        std::unique_ptr<core::RadixTile<T>> memory(new core::RadixTile<T>);
        run([&](const auto& team) { core::trim_tile(team, task, tile, *memory); });
    }
}

template <class T, class Block>
void trim_sliced(const core::TrimTask<T>& task, const Block& run) {
    constexpr int kSlices = 3;
    const int64_t slice_rows = (task.n + kSlices - 1) / kSlices;
    for (int64_t index = 0; index < core::tile_count(task.classes); ++index) {
        std::vector<core::RadixTile<T>> records(core::kPasses<T>);  // zeros
        for (int pass = 0; pass < core::kPasses<T>; ++pass) {
            std::vector<std::thread> blocks;
            for (int64_t begin = 0; begin < task.n; begin += slice_rows)
                blocks.emplace_back([&, begin] {
                    std::unique_ptr<core::RadixTile<T>> memory(new core::RadixTile<T>);
                    run([&](const auto& team) {
                        core::count_slice(team, task, index, pass, begin, std::min(task.n, begin + slice_rows),
                                          pass == 0 ? nullptr : &records[size_t(pass - 1)], records[size_t(pass)],
                                          *memory);
                    });
                });
            for (std::thread& block : blocks) block.join();
        }
        std::unique_ptr<core::RadixTile<T>> memory(new core::RadixTile<T>);
        run([&](const auto& team) { core::finish_slices(team, task, index, &records.back(), *memory); });
    }
}

template <class T>
void test_trimmed_gaps(Kind kind, int n, int classes, unsigned seed) {
    const Case<T> given(kind, n, classes, seed);
    std::vector<uint32_t> predicted;
    auto fresh = [&] {
        if (!predicted.empty()) check(same_bits(predicted, given.predicted), "predicted, n=%d C=%d", n, classes);
        predicted.assign(size_t(classes), 0);
    };
    on_every_team(fresh, [&](const auto& team) {
        for (int64_t row : given.rows) {
            const int j = core::predicted_class(team, reinterpret_cast<const T*>(row), classes);
            if (team.rank() == 0) core::count_up(&predicted[size_t(j)], 1);
        }
    });
    fresh();
    auto serial = [](const auto& f) { f(core::SerialTeam{}); };
    auto reversed = [](const auto& f) { f(ReversedTeam{}); };
    auto block = [](const auto& f) { run_block(3, f); };
    for (double trim : {0.1, 0.5, 0.97}) {
        const std::vector<T> expected = given.trimmed(trim);
        auto compare = [&](const char* how, const auto& run) {
            std::vector<T> gaps = given.untrimmed;
            run({given.rows.data(), n, classes, trim, given.predicted.data(), gaps.data()});
            check(same_bits(gaps, expected), "%s, n=%d C=%d trim=%g kind=%d", how, n, classes, trim, int(kind));
        };
        using Task = core::TrimTask<T>;
        compare("whole, one lane", [&](const Task& task) { trim_whole(task, serial); });
        compare("whole, backwards", [&](const Task& task) { trim_whole(task, reversed); });
        compare("sliced, one lane", [&](const Task& task) { trim_sliced(task, serial); });
        if (trim != 0.5 || kind > ties) continue;  // threads take their time
        compare("whole, block", [&](const Task& task) { trim_whole(task, block); });
        compare("sliced, block", [&](const Task& task) { trim_sliced(task, block); });
    }
}

// Rows that no class can be read from still give one.
template <class T>
void test_odd_rows() {
    const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
    const T rows[][3] = {{nan, nan, nan}, {-inf, -inf, -inf}, {nan, 2, 2}, {1, inf, inf}};
    const int expected[] = {0, 0, 1, 1};
    for (int at = 0; at < 4; ++at)
        on_every_team([] {},
                      [&](const auto& team) {
                          const int j = core::predicted_class(team, rows[at], 3);
                          if (team.rank() == 0) check(j == expected[at], "class of odd row %d", at);
                      });
}

template <class T>
void test_scalar() {
    test_keys<T>();
    test_odd_rows<T>();
    test_wide_block<T>();
    const int sizes[][2] = {{1, 1}, {2, 2}, {13, 3}, {101, 5}, {257, 10}, {61, 17}, {323, 32}};
    unsigned seed = 1;
    for (const auto& size : sizes)
        for (int kind = 0; kind < kinds; ++kind) test_select<T>(static_cast<Kind>(kind), size[0], size[1], ++seed);
    const int problems[][2] = {{1, 2}, {57, 2}, {83, 5}, {40, 11}, {29, 33}};
    for (const auto& problem : problems)
        for (int kind = 0; kind < kinds; ++kind)
            test_trimmed_gaps<T>(static_cast<Kind>(kind), problem[0], problem[1], ++seed);
}

}  // namespace

int main() {
    test_scalar<float>();
    test_scalar<double>();
    return report("radix_select");
}
