// Trimmed gaps: for each pair of classes an order statistic of L[i, j] - L[i, k] over all rows i, exactly.
//
// The rank is counted in rows of class j alone, so that these rows already bound the answer from below. The
// bound is high, and the pruning test of the gap matrix (core/gap_pruning.h) leaves few other rows that
// exceed it anywhere. A task takes as many classes as its share of the memory holds, and keeps for each pair
// (j, k) the differences that may still be among the largest: first those of class j, then, in one sweep over
// all rows, what exceeds the bound. Where a list fills up, its order statistic becomes the bound and what
// lies below is dropped.
#include "core/gap_pruning.h"
#include "cpu/kernels.h"
#include "cpu/select.h"
#include "cpu/simd.h"
#include "cpu/threads.h"
#include "cpu/trim_lists.h"

namespace tacfast::cpu::TACFAST_ISA {
namespace {

constexpr int64_t kListBytes = 40 << 20;     // all lists of all workers
constexpr int64_t kWorkPerThread = 1 << 15;  // logits that are worth starting a thread for
constexpr int64_t kOffsetRows = 64;          // rows whose means are the offsets of the pruning test
constexpr int64_t kRowsPerTask = 1 << 12;

// What the tasks share.
template <class T>
struct Shared {
    const TrimmedGaps& args;
    T* offsets;       // (C or a vector,) of the pruning test
    int32_t* label;   // (n,) each row's class
    int32_t* order;   // (n,) rows by class
    int64_t* first;   // (C + 1,) where each class begins in order
    int64_t* groups;  // (C + 1,) where each task's classes begin
    char* scratch;    // per worker: a weakest bound per class, and lists

    int64_t scratch_bytes;  // of one worker

    const T* row(int64_t i) const { return reinterpret_cast<const T*>(args.rows[i]); }
    int64_t rows_of(int64_t j) const { return first[j + 1] - first[j]; }
    int64_t rank(int64_t j) const { return rows_of(j) == 0 ? 1 : core::trim_rank(args.trim, rows_of(j)); }
};

template <class T>
void find_offsets(Shared<T>& s) {
    const int64_t width = at_least(s.args.classes, kLanes<T>), rows = at_most(s.args.n, kOffsetRows);
    for (int64_t k = 0; k < width; ++k) s.offsets[k] = 0;
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t k = 0; k < s.args.classes; ++k) s.offsets[k] += s.row(i)[k];
    for (int64_t k = 0; k < width; ++k) s.offsets[k] = core::safe_offset(s.offsets[k] / static_cast<T>(rows));
}

// Sorts the rows by class.
template <class T, bool narrow>
void sort_rows(Shared<T>& s, int workers) {
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

// A class whose lists would not fit in the memory: every pass of the selection goes over all rows.
template <class T, bool narrow>
void trim_without_lists(const Shared<T>& s, int64_t j) {
    const int64_t classes = s.args.classes;
    T* gaps = static_cast<T*>(s.args.gaps) + j * classes;
    for (int64_t k = 0; k < classes; k += kLanes<T>) {
        const int64_t start = vector_start<T>(k, classes);
        auto difference = [&](int64_t i) {
            return broadcast(s.row(i)[j]) - load_columns<narrow>(s.row(i), start, classes, T(0)) + Vec<T>{};
        };
        const Vec<T> answer = select<T>(difference, s.args.n, s.rank(j), broadcast(-kInf<T>));
        for (int64_t lane = 0; lane < at_most(kLanes<T>, classes); ++lane) gaps[start + lane] = answer[lane];
    }
}

// What the lists of a class need for good, and what they need besides while they are begun.
struct Bytes {
    int64_t for_good, at_first;
};
template <class L, class T>
Bytes bytes_of_class(const Shared<T>& s, int64_t j) {
    const int64_t rank = s.rank(j);
    return {L::bytes(s.args.classes, rank), L::first_bytes(s.args.classes, rank, s.rows_of(j))};
}

// Where the rank is 1, the maximum is the answer already; and some lists would not fit.
template <class L, class T>
bool has_lists(const Shared<T>& s, int64_t j) {
    const Bytes bytes = bytes_of_class<L>(s, j);
    return s.rank(j) > 1 && bytes.for_good + bytes.at_first <= s.scratch_bytes;
}

// The lists of a group of classes, and which rows to offer them.
template <class T, bool narrow>
struct Group {
    using L = Lists<T, narrow>;
    const Shared<T>& s;
    int64_t begin, end;
    T* weakest;       // (C or a vector,) of the pruning test; +inf for classes without lists
    T* lane_weakest;  // (C, lanes) the same for the columns in each lane: a sharper, second test
    char* memory;     // of the lists that are to come
    char* at_first;
    L** lists;  // (end - begin,)

    Group(const Shared<T>& shared, char* scratch, int64_t first_class, int64_t last_class)
        : s(shared), begin(first_class), end(last_class), memory(scratch) {
        const int64_t width = at_least(s.args.classes, kLanes<T>);
        take(memory, weakest, width);
        take(memory, lists, s.args.classes);
        take(memory, lane_weakest, s.args.classes * kLanes<T>);
        for (int64_t j = 0; j < width; ++j) weakest[j] = kInf<T>;
        int64_t most = 0;
        for (int64_t j = begin; j < end; ++j)
            if (has_lists<L>(s, j)) most = at_least(most, bytes_of_class<L>(s, j).at_first);
        at_first = memory;
        memory += most;
    }

    void add_own_rows(int64_t j) {
        const int64_t rank = s.rank(j), number = rows_at_first(rank, s.rows_of(j));
        L*& list = lists[j - begin];
        char* end_of_lists = memory + L::bytes(s.args.classes, rank);
        take(memory, list, 1);
        *list = L(memory, j, s.args.classes, rank);
        memory = end_of_lists;
        list->begin(s.args.rows, s.order + s.first[j], number, at_first);
        for (int64_t i = s.first[j] + number; i < s.first[j + 1]; ++i) list->offer(s.row(s.order[i]));
        raise(j);
    }

    void raise(int64_t j) {
        L& list = *lists[j - begin];
        for (int64_t v = 0; v < list.vectors; ++v) list.raise_bounds(v);
        find_weakest(j);
    }

    void find_weakest(int64_t j) {
        const Vec<T> least = lists[j - begin]->weakest(s.offsets);
        store<T>(lane_weakest + j * kLanes<T>, least);
        weakest[j] = reduce_min<T>(least);
    }

    // The smallest logits of the columns in each lane, for the pruning test.
    Vec<T> lane_lowest(const T* row) const {
        Vec<T> least = broadcast(kInf<T>);
        for (int64_t k = 0; k < s.args.classes; k += kLanes<T>) {
            const int64_t start = vector_start<T>(k, s.args.classes);
            least = min(least, load_columns<narrow>(row, start, s.args.classes, kInf<T>) - load(s.offsets + start));
        }
        return safe_minima<T>(least);
    }

    // Offers every row to the classes it is not of and whose bounds it may exceed.
    void sweep() {
        const int64_t classes = s.args.classes;
        for (int64_t i = 0; i < s.args.n; ++i) {
            const T* row = s.row(i);
            const Vec<T> lanes_lowest = lane_lowest(row), lowest = broadcast(reduce_min<T>(lanes_lowest));
            for (int64_t k = begin; k < end; k += kLanes<T>) {
                const int64_t start = vector_start<T>(k, classes), seen = k - start;
                const Vec<T> highest = load_columns<narrow>(row, start, classes, T(0)) - lowest;
                uint32_t bits = greater<T>(highest, load(weakest + start)) >> seen << seen;
                for (; bits != 0; bits &= bits - 1) {
                    const int64_t j = start + __builtin_ctz(bits);
                    const Vec<T> lanes_highest = broadcast(row[j]) - lanes_lowest;
                    if (greater<T>(lanes_highest, load(lane_weakest + j * kLanes<T>)) == 0) continue;
                    if (j != s.label[i] && lists[j - begin]->offer(row)) find_weakest(j);
                }
            }
        }
    }
};

template <class T, bool narrow>
void trim_group(const Shared<T>& s, char* scratch, int64_t begin, int64_t end) {
    using L = Lists<T, narrow>;
    Group<T, narrow> group(s, scratch, begin, end);
    bool any = false;
    for (int64_t j = begin; j < end; ++j) {
        group.lists[j - begin] = nullptr;
        if (has_lists<L>(s, j)) {
            group.add_own_rows(j);
            any = true;
        } else if (s.rank(j) > 1) {
            trim_without_lists<T, narrow>(s, j);
        }
    }
    if (any) group.sweep();
    for (int64_t j = begin; j < end; ++j) {
        if (group.lists[j - begin] == nullptr) continue;
        group.raise(j);
        group.lists[j - begin]->write(static_cast<T*>(s.args.gaps));
    }
}

int workers(int64_t n, int64_t classes, int threads) {
    return static_cast<int>(at_least(1, at_most(at_most(threads, classes), n * classes / kWorkPerThread)));
}

// Lists never need more than this: bytes summed over the classes, whatever the trim.
template <class T, bool narrow>
int64_t list_bytes(int64_t n, int64_t classes, int count) {
    const int64_t empty =
        Lists<T, narrow>::bytes(classes, 1);  // then a row for the rank and at most one of news, twice
    const int64_t all = classes * (empty + 64) + 3 * n * vectors_per_row<T>(classes) * kVectorBytes;
    return at_most(kListBytes, all * count) / count / 64 * 64;
}

template <class T>
int64_t scratch_head(int64_t classes) {
    return padded<T>(at_least(classes, kLanes<T>)) + padded<void*>(classes) + padded<T>(classes * kLanes<T>);
}

template <class T, bool narrow>
int64_t workspace_bytes(int64_t n, int64_t classes, int threads) {
    const int count = workers(n, classes, threads);
    return padded<T>(at_least(classes, kLanes<T>)) + 2 * padded<int32_t>(n) + 2 * padded<int64_t>(classes + 1) +
           count * (scratch_head<T>(classes) + list_bytes<T, narrow>(n, classes, count));
}

// Cuts the classes into tasks whose lists fit in one worker's memory, at least one task per worker.
template <class T, bool narrow>
int64_t form_groups(Shared<T>& s, int count) {
    using L = Lists<T, narrow>;
    const int64_t classes = s.args.classes, most = (classes + count - 1) / count;
    int64_t groups = 0, for_good = 0, at_first = 0;
    for (int64_t j = 0; j < classes; ++j) {
        const Bytes bytes = has_lists<L>(s, j) ? bytes_of_class<L>(s, j) : Bytes{0, 0};
        const bool fits = for_good + bytes.for_good + at_least(at_first, bytes.at_first) <= s.scratch_bytes;
        if (j == 0 || !fits || j - s.groups[groups - 1] >= most) {
            s.groups[groups++] = j;
            for_good = at_first = 0;
        }
        for_good += bytes.for_good;
        at_first = at_least(at_first, bytes.at_first);
    }
    s.groups[groups] = classes;
    return groups;
}

template <class T, bool narrow>
void trim(const TrimmedGaps& args) {
    if (args.trim == 0) return;
    const int count = workers(args.n, args.classes, args.threads);
    Shared<T> s{args, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0};
    char* memory = static_cast<char*>(args.workspace);
    take(memory, s.offsets, at_least(args.classes, kLanes<T>));
    take(memory, s.label, args.n);
    take(memory, s.order, args.n);
    take(memory, s.first, args.classes + 1);
    take(memory, s.groups, args.classes + 1);
    s.scratch = memory;
    s.scratch_bytes = list_bytes<T, narrow>(args.n, args.classes, count);
    find_offsets(s);
    sort_rows<T, narrow>(s, count);
    const int64_t groups = form_groups<T, narrow>(s, count);
    const int64_t stride = scratch_head<T>(args.classes) + s.scratch_bytes;
    auto task = [&](int worker, int64_t group) {
        trim_group<T, narrow>(s, s.scratch + worker * stride, s.groups[group], s.groups[group + 1]);
    };
    parallel_for(count, groups, task);
}

}  // namespace

// At most 40 MB of lists and 8 bytes per row: some 48 MB for a million rows.
int64_t trim_workspace_bytes(Scalar scalar, int64_t n, int64_t classes, int threads) {
    if (scalar == Scalar::f32)
        return (classes < kLanes<float> ? workspace_bytes<float, true> : workspace_bytes<float, false>)(n, classes,
                                                                                                        threads);
    return (classes < kLanes<double> ? workspace_bytes<double, true> : workspace_bytes<double, false>)(n, classes,
                                                                                                       threads);
}

void trimmed_gaps(const TrimmedGaps& args) {
    if (args.scalar == Scalar::f32)
        return (args.classes < kLanes<float> ? trim<float, true> : trim<float, false>)(args);
    return (args.classes < kLanes<double> ? trim<double, true> : trim<double, false>)(args);
}

}  // namespace tacfast::cpu::TACFAST_ISA
