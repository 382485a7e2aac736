// Radix selection (core/radix_select.h) on every team against std::nth_element, and the trimmed gaps made of it
// (core/trimmed_gaps.h) step by step against their definition: bit for bit.
#include <algorithm>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "core/trimmed_gaps.h"
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

// A number that can be selected from.
template <class T>
T draw_positive(Kind kind, std::mt19937& random) {
    return std::abs(draw<T>(kind, random));
}

template <class T>
void test_keys() {
    std::mt19937 random(5);
    std::vector<T> numbers = {T(0), std::numeric_limits<T>::max(), std::numeric_limits<T>::infinity()};
    for (int i = 0; i < 200; ++i) numbers.push_back(draw_positive<T>(static_cast<Kind>(i % kinds), random));
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
    int width = 2;
    while (width < columns) width *= 2;
    std::vector<T> numbers(static_cast<size_t>(n * columns));
    for (T& x : numbers) x = draw_positive<T>(kind, random);
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

// Logits with a few classes that no row is of, and what each step makes of them by definition.
template <class T>
struct Case {
    int n, classes;
    std::vector<T> logits;
    std::vector<int64_t> rows;
    std::vector<uint32_t> label;
    std::vector<std::vector<int64_t>> by_class;  // row addresses
    std::vector<T> untrimmed;

    Case(Kind kind, int n_, int classes_, unsigned seed)
        : n(n_), classes(classes_), logits(size_t(n_ * classes_)), by_class(size_t(classes_)) {
        std::mt19937 random(seed);
        for (int i = 0; i < n; ++i)
            for (int j = 0; j < classes; ++j)
                logits[size_t(i * classes + j)] = draw<T>(kind, random) - (j % 3 == 1 && kind == normal ? T(5) : T(0));
        for (int i = 0; i < n; ++i) {
            const T* row = &logits[size_t(i * classes)];
            rows.push_back(reinterpret_cast<int64_t>(row));
            label.push_back(static_cast<uint32_t>(std::max_element(row, row + classes) - row));
            by_class[label.back()].push_back(rows.back());
        }
        for (int j = 0; j < classes; ++j)
            for (int k = 0; k < classes; ++k) untrimmed.push_back(largest(rows, j, k, 0));
        for (int k = 0; k < classes; ++k)  // what update_gaps leaves of a class with a logit that is not finite
            if (classes > 2) gap(untrimmed, 1, k) = gap(untrimmed, k, 1) = std::numeric_limits<T>::quiet_NaN();
    }

    T& gap(std::vector<T>& gaps, int j, int k) const { return gaps[size_t(j * classes + k)]; }

    // The largest difference of the logits of two classes, but for so many.
    static T largest(const std::vector<int64_t>& of, int j, int k, int64_t left_out) {
        std::vector<T> values;
        for (int64_t address : of) {
            const T* row = reinterpret_cast<const T*>(address);
            values.push_back(row[j] - row[k] + T(0));
        }
        const auto at = values.begin() + left_out;
        std::nth_element(values.begin(), at, values.end(), std::greater<T>());
        return *at;
    }

    std::vector<T> trimmed(double trim) const {
        std::vector<T> gaps = untrimmed;
        for (int j = 0; j < classes; ++j)
            for (int k = 0; k < classes; ++k) {
                const std::vector<int64_t>& own = by_class[size_t(j)];
                if (own.empty() || std::isnan(gap(gaps, j, k))) continue;
                gap(gaps, j, k) = largest(own, j, k, static_cast<int64_t>(std::floor(trim * double(own.size()))));
            }
        return gaps;
    }
};

// The memory of a task, as a launch finds it.
template <class T>
struct Memory {
    std::vector<uint32_t> label, counts, ends, sums;
    std::vector<int64_t> sorted;
    std::vector<T> gaps;
    core::TrimTask<T> task;

    Memory(const Case<T>& given, double trim)
        : label(size_t(given.n), 77u),
          counts(size_t(given.classes)),
          ends(size_t(given.classes), 77u),
          sums(size_t(core::kScanChunks), 77u),
          sorted(size_t(given.n)),
          gaps(given.untrimmed),
          task{given.rows.data(), given.n,     given.classes, trim,       label.data(),
               counts.data(),     ends.data(), sorted.data(), gaps.data()} {}
};

// The steps as the kernels do them, each begun when the one before is done: run(f) is f on every lane of a team.
template <class T, class Run>
void sort_by_class(Memory<T>& memory, const Run& run) {
    const core::TrimTask<T>& task = memory.task;
    run([&](const auto& team) {
        for (int i = 0; i < int(task.n); ++i) {
            const int j = core::predicted_class(team, reinterpret_cast<const T*>(task.rows[i]), task.classes);
            if (team.rank() == i % team.lanes()) core::enter_label(task, i, j);
        }
    });
    run([&](const auto& team) { core::begin_classes(team, task, memory.sums.data()); });
    run([&](const auto& team) { team.each(int(task.n), [&](int i) { core::sort_row(task, i); }); });
}

template <class T, class Run>
void trim_tiles(const core::TrimTask<T>& task, const Run& run) {
    for (int64_t at = 0; at < core::tile_count(task.classes, core::tile_width(task.classes)); ++at) {
        std::unique_ptr<core::RadixTile<T>> tile(new core::RadixTile<T>);
        run([&](const auto& team) { core::trim_tile(team, task, at, *tile); });
    }
}

template <class T>
void check_sorted(const char* how, const Case<T>& given, const Memory<T>& memory) {
    check(same_bits(memory.label, given.label), "%s: classes, n=%d C=%d", how, given.n, given.classes);
    auto begin = memory.sorted.begin();
    for (size_t j = 0; j < given.by_class.size(); ++j) {
        const std::vector<int64_t>& own = given.by_class[j];
        const auto end = begin + static_cast<int64_t>(own.size());
        std::vector<int64_t> found(begin, end);
        std::sort(found.begin(), found.end());  // as the rows lie in memory
        check(memory.counts[j] == own.size() && memory.ends[j] == end - memory.sorted.begin() && same_bits(found, own),
              "%s: rows of class %d, n=%d C=%d", how, int(j), given.n, given.classes);
        begin = end;
    }
}

template <class T>
void test_trimmed_gaps(Kind kind, int n, int classes, unsigned seed, std::initializer_list<double> trims) {
    const Case<T> given(kind, n, classes, seed);
    for (double trim : trims) {
        auto test = [&](const char* how, const auto& run) {
            Memory<T> memory(given, trim);
            sort_by_class(memory, run);
            check_sorted(how, given, memory);
            trim_tiles(memory.task, run);
            check(same_bits(memory.gaps, given.trimmed(trim)), "%s: trimmed gaps, n=%d C=%d trim=%g kind=%d", how, n,
                  classes, trim, int(kind));
        };
        test("one lane", [](const auto& f) { f(core::SerialTeam{}); });
        test("backwards", [](const auto& f) { f(ReversedTeam{}); });
        if (trim == 0.5 && kind <= ties) test("block", [](const auto& f) { run_block(3, f); });  // threads take time
    }
}

// More classes than chunks of them.
template <class T>
void test_many_classes() {
    for (int classes : {core::kScanChunks - 1, core::kScanChunks, core::kScanChunks + 1, 5 * core::kScanChunks + 7}) {
        const Case<T> given(normal, 90, classes, unsigned(classes));
        Memory<T> memory(given, 0.5), again(given, 0.5);
        sort_by_class(memory, [](const auto& f) { f(core::SerialTeam{}); });
        check_sorted("many classes, one lane", given, memory);
        sort_by_class(again, [](const auto& f) { run_block(3, f); });
        check_sorted("many classes, block", given, again);
    }
}

// Every pair is in one tile, and few classes make as many tiles as they can.
void test_tiles() {
    for (int64_t classes = 1; classes < 300; ++classes) {
        const int width = core::tile_width(classes);
        std::vector<int> seen(size_t(classes * classes));
        std::vector<uint32_t> none(static_cast<size_t>(classes));
        const core::TrimTask<float> task{nullptr, 0, classes, 0.5, nullptr, none.data(), none.data(), nullptr, nullptr};
        for (int64_t at = 0; at < core::tile_count(classes, width); ++at) {
            const core::TrimTile<float> tile(task, at);
            for (int64_t k = tile.first; k < tile.first + tile.columns; ++k) ++seen[size_t(tile.j * classes + k)];
        }
        check(std::all_of(seen.begin(), seen.end(), [](int times) { return times == 1; }), "pairs, C=%d", int(classes));
        check(core::tile_count(classes, width) >= core::kEnoughTiles || width == 2, "few tiles, C=%d", int(classes));
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
            test_trimmed_gaps<T>(static_cast<Kind>(kind), problem[0], problem[1], ++seed, {0.1, 0.5, 0.97});
    test_many_classes<T>();
}

}  // namespace

int main() {
    test_tiles();
    test_scalar<float>();
    test_scalar<double>();
    return report("radix_select");
}
