// Trimmed gaps: for each pair of classes an order statistic of L[i, j] - L[i, k] over the rows i of class j, exactly.
//
// The rows are sorted by class first. Then, class by class and for a vector of k at a time, the differences are
// gathered side by side and selected from in each lane.
#include "core/gap_pruning.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/threads.h"

namespace tacfast::cpu::TACFAST_ISA {
namespace {

constexpr int64_t kWorkPerThread = 1 << 16;  // logits that are worth starting a thread for
constexpr int64_t kRowsPerTask = 1 << 12;

// What the tasks share.
template <class T>
struct Shared {
    const TrimmedGaps& args;
    int32_t* label;  // (n,) each row's class
    int32_t* order;  // (n,) rows by class
    int64_t* first;  // (C + 1,) where each class begins in order
    T* values;       // (n, lanes) the differences, rows as in order

    Shared(const TrimmedGaps& arguments) : args(arguments) {
        char* memory = static_cast<char*>(args.workspace);
        take(memory, label, args.n);
        take(memory, order, args.n);
        take(memory, first, args.classes + 1);
        take(memory, values, args.n * kLanes<T>);
    }

    static int64_t bytes(int64_t n, int64_t classes) {
        return 2 * padded<int32_t>(n) + padded<int64_t>(classes + 1) + padded<T>(n * kLanes<T>);
    }

    const T* row(int64_t i) const { return reinterpret_cast<const T*>(args.rows[i]); }
};

template <class T, bool narrow>
void sort_rows(const Shared<T>& s, int workers) {
    const int64_t n = s.args.n, classes = s.args.classes;
    auto look_at = [&](int, int64_t task) {
        for (int64_t i = task * kRowsPerTask; i < at_most(n, (task + 1) * kRowsPerTask); ++i)
            s.label[i] = static_cast<int32_t>(first_largest<narrow>(s.row(i), classes));
    };
    parallel_for(workers, (n + kRowsPerTask - 1) / kRowsPerTask, look_at);
    for (int64_t j = 0; j <= classes; ++j) s.first[j] = 0;
    for (int64_t i = 0; i < n; ++i) ++s.first[s.label[i] + 1];
    for (int64_t j = 0; j < classes; ++j) s.first[j + 1] += s.first[j];
    for (int64_t i = 0; i < n; ++i) s.order[s.first[s.label[i]]++] = static_cast<int32_t>(i);
    for (int64_t j = classes; j > 0; --j) s.first[j] = s.first[j - 1];
    s.first[0] = 0;
}

// The rank-th largest, in each lane, of values (number, lanes), which are at least +0.
//
// Such numbers are in the order of their bits. Those of the answer are found from the highest to the lowest, by
// counting the values that have a further one of them, until no value but the `rank` largest is left above.
template <class T>
Vec<T> select(const T* values, int64_t number, IntVec<T> rank) {
    IntVec<T> low = {}, above = static_cast<Int<T>>(number) - IntVec<T>{};  // how many values are at least `low`
    auto is_open = [&] {
        bool open = false;
        for (int lane = 0; lane < kLanes<T>; ++lane) open |= above[lane] != rank[lane];
        return open;
    };
    for (int bit = 8 * static_cast<int>(sizeof(T)) - 2; bit >= 0 && is_open(); --bit) {
        const IntVec<T> next = low | Int<T>(1) << bit;
        const Vec<T> point = reinterpret_bits<Vec<T>>(next);
        IntVec<T> count = {};
        for (int64_t i = 0; i < number; ++i) count -= load(values + i * kLanes<T>) >= point;
        const IntVec<T> enough = count >= rank;
        low = enough ? next : low;
        above = enough ? count : above;
    }
    const Vec<T> bound = reinterpret_bits<Vec<T>>(low), infinity = broadcast(kInf<T>);
    Vec<T> least = infinity;
    for (int64_t i = 0; i < number; ++i) {
        const Vec<T> value = load(values + i * kLanes<T>);
        least = min(least, value >= bound ? value : infinity);
    }
    return least;
}

// A class that no row is of keeps its maximum over all rows.
template <class T, bool narrow>
void trim_class(const Shared<T>& s, int64_t j) {
    const int64_t classes = s.args.classes, begin = s.first[j], own = s.first[j + 1] - begin;
    if (own == 0) return;
    T* gaps = static_cast<T*>(s.args.gaps) + j * classes;
    T* values = s.values + begin * kLanes<T>;
    for (int64_t k = 0; k < classes; k += kLanes<T>) {
        const int64_t start = vector_start<T>(k, classes);
        for (int64_t i = 0; i < own; ++i) {
            const T* row = s.row(s.order[begin + i]);
            const Vec<T> difference = broadcast(row[j]) - load_columns<narrow>(row, start, classes, -kInf<T>);
            store<T>(values + i * kLanes<T>, difference + Vec<T>{});  // + 0: no -0
        }
        IntVec<T> rank;
        for (int lane = 0; lane < kLanes<T>; ++lane) {  // all are the same in column j, and past C
            const bool is_decided = start + lane == j || start + lane >= classes;
            rank[lane] = static_cast<Int<T>>(is_decided ? own : core::trim_rank(s.args.trim, own));
        }
        const Vec<T> answer = select<T>(values, own, rank);
        for (int64_t lane = 0; lane < at_most(kLanes<T>, classes); ++lane) gaps[start + lane] = answer[lane];
    }
}

template <class T, bool narrow>
void trim(const TrimmedGaps& args) {
    const int64_t useful = at_most(args.classes, args.n * args.classes / kWorkPerThread);
    const int workers = static_cast<int>(at_least(1, at_most(args.threads, useful)));
    const Shared<T> s(args);
    sort_rows<T, narrow>(s, workers);
    auto task = [&](int, int64_t j) { trim_class<T, narrow>(s, j); };
    parallel_for(workers, args.classes, task);
}

}  // namespace

// A vector and 8 bytes per row: some 72 MB for a million rows.
int64_t trim_workspace_bytes(Scalar scalar, int64_t n, int64_t classes) {
    return (scalar == Scalar::f32 ? Shared<float>::bytes : Shared<double>::bytes)(n, classes);
}

void trimmed_gaps(const TrimmedGaps& args) {
    if (args.trim == 0) return;
    if (args.scalar == Scalar::f32)
        return (args.classes < kLanes<float> ? trim<float, true> : trim<float, false>)(args);
    return (args.classes < kLanes<double> ? trim<double, true> : trim<double, false>)(args);
}

}  // namespace tacfast::cpu::TACFAST_ISA
