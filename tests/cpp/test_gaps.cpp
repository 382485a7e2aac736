// The CPU gap matrix and its trimmed form against plain loops, bit for bit.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>
#include <random>
#include <vector>

#include "backend.h"
#include "naive_gaps.h"

namespace {

using namespace tacfast;

int passed = 0, failed = 0;

void check(bool ok, const char* what, int64_t n, int64_t classes, double detail) {
    ++(ok ? passed : failed);
    if (!ok && failed <= 20)
        std::printf("FAILED: %s (n=%lld, C=%lld, %g)\n", what, (long long)n, (long long)classes, detail);
}

template <class T>
constexpr Scalar scalar_of = sizeof(T) == 4 ? Scalar::f32 : Scalar::f64;

// Exactly as many bytes as were asked for, so that the sanitizer sees the end.
struct Workspace {
    void* memory;
    explicit Workspace(int64_t bytes) : memory(::operator new(static_cast<size_t>(bytes), std::align_val_t(64))) {}
    ~Workspace() { ::operator delete(memory, std::align_val_t(64)); }
};

template <class T>
struct Logits {
    int64_t n, classes, stride;
    std::vector<T> data;
    Logits(int64_t rows, int64_t columns, int64_t padding)
        : n(rows),
          classes(columns),
          stride(columns + padding),
          data(static_cast<size_t>((rows - 1) * stride + columns)) {}
    T* row(int64_t i) { return data.data() + i * stride; }
    const T* row(int64_t i) const { return data.data() + i * stride; }
};

// How the logits look; "realistic" has one logit well above the others.
enum Kind { structureless, realistic, imbalanced, one_class, ties, constant, huge, kinds };

template <class T>
Logits<T> make(Kind kind, int64_t n, int64_t classes, int64_t padding, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    Logits<T> logits(n, classes, padding);
    std::fill(logits.data.begin(), logits.data.end(),
              std::numeric_limits<T>::quiet_NaN());  // between the rows
    for (int64_t i = 0; i < n; ++i) {
        const int64_t top = kind == one_class ? classes / 2 : static_cast<int64_t>(random() % unsigned(classes));
        for (int64_t j = 0; j < classes; ++j) {
            double x = normal(random) + 0.1 * static_cast<double>(j % 7);
            if (kind == realistic || kind == one_class) x += j == top ? 8 : 0;
            if (kind == imbalanced) x += j == top * top / classes * top / classes ? 8 : 0;
            if (kind == ties) x = std::copysign(std::floor(std::abs(x)), x);  // among them -0
            if (kind == constant) x = 3;
            if (kind == huge) x *= i % 3 == 0 ? double(std::numeric_limits<T>::max()) / 8 : 1e-30;
            logits.row(i)[j] = static_cast<T>(x);
        }
    }
    return logits;
}

template <class T>
int64_t update(const Logits<T>& logits, int64_t from, int64_t to, int threads, std::vector<T>& gaps) {
    Workspace workspace(cpu::gap_workspace_bytes(scalar_of<T>, to - from, logits.classes, threads));
    GapUpdate args{scalar_of<T>,  logits.row(from), to - from,        logits.classes,
                   logits.stride, gaps.data(),      workspace.memory, threads};
    cpu::update_gaps(args);
    return args.first_bad;
}

template <class T>
std::vector<T> fresh(int64_t classes) {
    return std::vector<T>(static_cast<size_t>(classes * classes), -std::numeric_limits<T>::infinity());
}

template <class T>
void test_problem(Kind kind, int64_t n, int64_t classes, int64_t padding, unsigned seed) {
    const Logits<T> logits = make<T>(kind, n, classes, padding, seed);
    const std::vector<T> expected = test::naive_gaps(logits.row(0), n, classes, logits.stride);
    for (int threads : {1, 2, 5}) {
        std::vector<T> gaps = fresh<T>(classes);
        check(update(logits, 0, n, threads, gaps) == -1 && gaps == expected, "gaps", n, classes, kind);
    }
    std::mt19937 random(seed);
    std::vector<T> split = fresh<T>(classes);
    for (int64_t from = 0; from < n;) {
        const int64_t to = std::min<int64_t>(n, from + 1 + static_cast<int64_t>(random() % unsigned(n)));
        update(logits, from, to, 2, split);
        from = to;
    }
    check(split == expected, "gaps from splits", n, classes, kind);
    check(std::none_of(split.begin(), split.end(), [](T x) { return x == 0 && std::signbit(x); }), "no -0", n, classes,
          kind);

    std::vector<int64_t> rows(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) rows[static_cast<size_t>(i)] = reinterpret_cast<int64_t>(logits.row(i));
    for (double trim : {0.0, 0.1, 0.5, 0.9, 0.99}) {
        const std::vector<T> trimmed = test::naive_trimmed(logits.row(0), n, classes, logits.stride, expected, trim);
        for (int threads : {1, 2, 5}) {
            std::vector<T> gaps = expected;
            Workspace workspace(cpu::trim_workspace_bytes(scalar_of<T>, n, classes));
            cpu::trimmed_gaps({scalar_of<T>, rows.data(), n, classes, trim, gaps.data(), workspace.memory, threads});
            check(gaps == trimmed, "trimmed gaps", n, classes, trim + 10 * kind);
        }
    }
}

template <class T>
void test_first_bad(int64_t n, int64_t classes, int64_t padding, unsigned seed) {
    std::mt19937 random(seed);
    const T bads[] = {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(),
                      -std::numeric_limits<T>::infinity()};
    for (int trial = 0; trial < 12; ++trial) {
        Logits<T> logits = make<T>(realistic, n, classes, padding, seed + unsigned(trial));
        int64_t first = n * classes;
        for (int bad = 0; bad <= trial % 3; ++bad) {
            int64_t at = static_cast<int64_t>(random() % unsigned(n * classes));
            if (trial == 0) at = 0;
            if (trial == 3) at = n * classes - 1;
            logits.row(at / classes)[at % classes] = bads[random() % 3];
            first = std::min(first, at);
        }
        for (int threads : {1, 2, 5}) {
            std::vector<T> gaps = fresh<T>(classes);
            check(update(logits, 0, n, threads, gaps) == first, "first bad", n, classes, trial);
        }
    }
}

template <class T>
void test_scalar() {
    const int64_t sizes[][2] = {{1, 2},    {2, 2},     {700, 2}, {5, 3},    {300, 4},  {100, 7},
                                {1, 10},   {1531, 10}, {64, 15}, {90, 16},  {333, 17}, {1, 31},
                                {257, 33}, {200, 64},  {97, 67}, {40, 131}, {1100, 43}};
    unsigned seed = 1;
    for (const auto& size : sizes)
        for (int kind = 0; kind < kinds; ++kind, ++seed)
            test_problem<T>(static_cast<Kind>(kind), size[0], size[1], seed % 3, seed);
    test_problem<T>(realistic, 20011, 45, 1, 99);  // several blocks, workers and refills
    test_problem<T>(structureless, 30011, 23, 0, 98);
    test_problem<T>(one_class, 60013, 11, 0, 97);
    test_problem<T>(imbalanced, 5003, 150, 2, 96);
    test_first_bad<T>(1, 2, 0, 1);
    test_first_bad<T>(101, 5, 1, 2);
    test_first_bad<T>(3001, 37, 0, 3);
    test_first_bad<T>(40009, 29, 3, 4);
}

}  // namespace

int main() {
    test_scalar<float>();
    test_scalar<double>();
    std::printf("%s: %d passed, %d failed\n", cpu::instruction_set(), passed, failed);
    return failed != 0;
}
