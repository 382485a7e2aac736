// The gap matrix, gaps[j, k] = max_i (L[i, j] - L[i, k]), with exact pruning.
//
// A cheap test (core/gap_pruning.h) tells whether a row of logits can raise any gap of class j. Once a few
// rows of each class have been seen, that leaves little more than the class the row belongs to. So, first,
// some rows are folded into the gaps of their own class alone. Then each block of rows, small enough to stay
// in the cache, is read once to list, for each j, the rows that pass the test, and the listed rows are folded
// into row j. Maxima do not round, so that no order of the rows changes a bit of the result.
#include "core/gap_pruning.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/threads.h"

namespace tacfast::cpu::TACFAST_ISA {
namespace {

constexpr int64_t kBlockBytes = 1 << 20;       // logits of one block
constexpr int64_t kMaxBlockRows = 1 << 10;     // row numbers in a block have 16 bits
constexpr int64_t kSeedsPerClass = 32;         // rows that are first folded into their own class
constexpr int64_t kOffsetRows = 64;            // rows whose means are the offsets of the pruning test
constexpr int64_t kWorkPerThread = 1 << 18;    // logits that are worth starting a thread for
constexpr int64_t kMergeInParallel = 1 << 22;  // gaps that are worth merging on several threads

// Each worker raises gaps of its own, so that it needs enough rows to prune by them, and they are merged at
// the end.
int workers(int64_t n, int64_t classes, int threads) {
    const int64_t useful = at_most(n * classes / kWorkPerThread, n / (4 * classes));
    return static_cast<int>(at_least(1, at_most(threads, useful)));
}

template <class T>
int64_t rows_per_block(int64_t n, int64_t classes) {
    const int64_t fitting = kBlockBytes / (classes * static_cast<int64_t>(sizeof(T)));
    return at_most(n, at_least(16, at_most(fitting, kMaxBlockRows)));
}

// One worker: its gaps and its lists. narrow: a row is shorter than a vector.
template <class T, bool narrow>
struct Worker {
    int64_t classes, block_rows, row_stride;
    int64_t width;           // of gaps: C, or a vector where that is more
    T* gaps;                 // (C, width)
    T* weakest;              // (width,) of the pruning test; +inf past C
    const T* offsets;        // (width,) of the pruning test; 0 past C
    uint16_t* lists;         // (C, block_rows) rows of the block that may raise row j
    int32_t* listed;         // (C,) how many
    int64_t first_bad = -1;  // as of GapUpdate

    static constexpr int lanes = kLanes<T>;

    Worker(const GapUpdate& args, const T* pruning_offsets, char* memory, bool in_place)
        : classes(args.classes),
          block_rows(rows_per_block<T>(args.n, classes)),
          row_stride(args.row_stride),
          width(narrow ? lanes : classes),
          offsets(pruning_offsets) {
        take(memory, weakest, width);
        take(memory, lists, classes * block_rows);
        take(memory, listed, classes);
        if (in_place) {
            gaps = static_cast<T*>(args.gaps);
        } else {
            take(memory, gaps, classes * width);
            copy_gaps(static_cast<const T*>(args.gaps));
        }
        std::memset(listed, 0, classes * sizeof *listed);
        for (int64_t j = classes; j < width; ++j) weakest[j] = kInf<T>;
        for (int64_t j = 0; j < classes; ++j) find_weakest(j);
    }

    static int64_t bytes(int64_t n, int64_t classes, bool in_place) {
        const int64_t width = narrow ? lanes : classes;
        return padded<T>(width) + padded<uint16_t>(classes * rows_per_block<T>(n, classes)) + padded<int32_t>(classes) +
               (in_place ? 0 : padded<T>(classes * width));
    }

    void copy_gaps(const T* from) {
        for (int64_t j = 0; j < classes; ++j) {
            for (int64_t k = 0; k < classes; ++k) gaps[j * width + k] = from[j * classes + k];
            for (int64_t k = classes; k < width; ++k) gaps[j * width + k] = kInf<T>;  // never the weakest, never raised
        }
    }

    void find_weakest(int64_t j) {
        T* row = gaps + j * width;
        const T diagonal = row[j];
        row[j] = kInf<T>;  // it says nothing: it is always 0
        Vec<T> least = broadcast(kInf<T>);
        for (int64_t k = 0; k < width; k += lanes) {
            const int64_t start = vector_start<T>(k, width);
            least = min(least, load(row + start) + load(offsets + start));
        }
        row[j] = diagonal;
        weakest[j] = core::safe_minimum(reduce_min<T>(least));
    }

    // Folds a block of rows into the gaps of their own classes.
    void seed(const T* block, int64_t rows) {
        for (int64_t i = 0; i < rows; ++i) {
            enter(first_largest<narrow>(block + i * row_stride, classes), static_cast<uint16_t>(i));
        }
        raise_rows(block);
    }

    void enter(int64_t j, uint16_t number) { lists[j * block_rows + listed[j]++] = number; }

    void raise_rows(const T* block) {
        for (int64_t j = 0; j < classes; ++j)
            if (listed[j] != 0) raise_row(block, j);
    }

    // Folds a block of rows into the gaps, unless one of its logits is not finite.
    void fold(const T* block, int64_t rows, int64_t first_row) {
        Vec<T> zeros = {};
        for (int64_t i = 0; i < rows; ++i) zeros += list_row(block + i * row_stride, static_cast<uint16_t>(i));
        if (greater<T>(zeros, broadcast(T(-1))) != kAllLanes<T>) {
            find_bad(block, rows, first_row);
            std::memset(listed, 0, classes * sizeof *listed);
            return;
        }
        raise_rows(block);
    }

    // Enters a row in the list of every class it may raise. Returns sums of 0 * logit: NaN where one is not
    // finite.
    Vec<T> list_row(const T* row, uint16_t number) {
        Vec<T> least = broadcast(kInf<T>), zeros = {};
        for (int64_t k = 0; k < classes; k += lanes) {
            const int64_t start = vector_start<T>(k, classes);
            least = min(least, columns(row, start, kInf<T>) - load(offsets + start));
            zeros += columns(row, start, T(0)) * T(0);
        }
        const Vec<T> lowest = broadcast(core::safe_minimum(reduce_min<T>(least)));
        for (int64_t k = 0; k < classes; k += lanes) {
            const int64_t start = vector_start<T>(k, classes), seen = k - start;
            const Vec<T> highest = columns(row, start, T(0)) - lowest;
            uint32_t bits = greater<T>(highest, load(weakest + start)) >> seen << seen;
            for (; bits != 0; bits &= bits - 1) enter(start + __builtin_ctz(bits), number);
        }
        return zeros;
    }

    void raise_row(const T* block, int64_t j) {
        bool grown = false;
        int64_t k = 0;
        for (; k + 4 * lanes <= classes; k += 4 * lanes) grown |= raise_columns<4>(block, j, k);
        for (; k < classes; k += lanes) grown |= raise_columns<1>(block, j, vector_start<T>(k, classes));
        if (grown) find_weakest(j);
        listed[j] = 0;
    }

    // Folds the listed rows into some vectors of row j of the gaps; says whether any gap has grown.
    template <int vectors>
    bool raise_columns(const T* block, int64_t j, int64_t k) {
        T* to = gaps + j * width + k;
        const uint16_t* list = lists + j * block_rows;
        Vec<T> gap[vectors];
        for (int v = 0; v < vectors; ++v) gap[v] = load(to + v * lanes);
        for (int32_t i = 0; i < listed[j]; ++i) {
            const T* row = block + list[i] * row_stride;
            const Vec<T> logit = broadcast(row[j]);
            for (int v = 0; v < vectors; ++v) gap[v] = max(gap[v], logit - columns(row, k + v * lanes, kInf<T>));
        }
        uint32_t grown = 0;
        for (int v = 0; v < vectors; ++v) grown |= greater<T>(gap[v], load(to + v * lanes));
        if (grown == 0) return false;
        for (int v = 0; v < vectors; ++v) store<T>(to + v * lanes, gap[v] + Vec<T>{});  // + 0: no -0, in any order
        return true;
    }

    Vec<T> columns(const T* row, int64_t k, T fill) const { return load_columns<narrow>(row, k, classes, fill); }

    void find_bad(const T* block, int64_t rows, int64_t first_row) {
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < classes; ++j) {
                if (block[i * row_stride + j] * T(0) == T(0)) continue;
                const int64_t bad = (first_row + i) * classes + j;
                if (first_bad < 0 || bad < first_bad) first_bad = bad;
                return;
            }
    }
};

template <class T, bool narrow>
int64_t workspace_bytes(int64_t n, int64_t classes, int threads) {
    using W = Worker<T, narrow>;
    const int count = workers(n, classes, threads);
    return padded<W>(count) + padded<T>(at_least(classes, kLanes<T>)) + W::bytes(n, classes, !narrow) +
           (count - 1) * W::bytes(n, classes, false);
}

template <class T>
void find_offsets(const GapUpdate& args, T* offsets, int64_t width) {
    const T* logits = static_cast<const T*>(args.logits);
    const int64_t rows = at_most(args.n, kOffsetRows);
    for (int64_t k = 0; k < width; ++k) offsets[k] = 0;
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t k = 0; k < args.classes; ++k) offsets[k] += logits[i * args.row_stride + k];
    for (int64_t k = 0; k < width; ++k) offsets[k] = core::safe_offset(offsets[k] / static_cast<T>(rows));
}

// Raises the gaps to the maximum of all workers' gaps, and theirs as well if they are to go on.
template <class T, bool narrow>
void merge(const GapUpdate& args, Worker<T, narrow>* team, int count, bool go_on) {
    const int64_t classes = args.classes;
    auto merge_row = [&](int, int64_t j) {
        T* to = static_cast<T*>(args.gaps) + j * classes;
        for (int i = narrow ? 0 : 1; i < count; ++i) {
            const T* row = team[i].gaps + j * team[i].width;
            for (int64_t k = 0; k < classes; ++k) to[k] = row[k] > to[k] ? row[k] : to[k];
        }
        for (int i = 0; go_on && i < count; ++i) {
            if (team[i].gaps != args.gaps) std::memcpy(team[i].gaps + j * team[i].width, to, classes * sizeof(T));
            team[i].find_weakest(j);
        }
    };
    const bool large = classes * classes * count > kMergeInParallel;
    parallel_for(large ? count : 1, classes, merge_row);
}

template <class T, bool narrow>
void run(GapUpdate& args, Worker<T, narrow>* team, int count) {
    const int64_t rows = team[0].block_rows;
    auto block = [&](int64_t number) { return static_cast<const T*>(args.logits) + number * rows * args.row_stride; };
    auto seed = [&](int worker, int64_t number) {
        team[worker].seed(block(number), at_most(rows, args.n - number * rows));
    };
    auto fold = [&](int worker, int64_t number) {
        team[worker].fold(block(number), at_most(rows, args.n - number * rows), number * rows);
    };
    const int64_t blocks = (args.n + rows - 1) / rows;
    const bool shared = narrow || count > 1;
    parallel_for(count, at_most(blocks, (kSeedsPerClass * args.classes + rows - 1) / rows), seed);
    if (count > 1) merge(args, team, count, true);
    parallel_for(count, blocks, fold);

    args.first_bad = -1;
    for (int i = 0; i < count; ++i) {
        const int64_t bad = team[i].first_bad;
        if (bad >= 0 && (args.first_bad < 0 || bad < args.first_bad)) args.first_bad = bad;
    }
    if (args.first_bad < 0 && shared) merge(args, team, count, false);
}

template <class T, bool narrow>
void update(GapUpdate& args) {
    using W = Worker<T, narrow>;
    const int count = workers(args.n, args.classes, args.threads);
    const int64_t width = at_least(args.classes, kLanes<T>);
    char* memory = static_cast<char*>(args.workspace);
    W* team;
    T* offsets;
    take(memory, team, count);
    take(memory, offsets, width);
    find_offsets(args, offsets, width);
    for (int i = 0; i < count; ++i) {  // all copies first: the first worker raises the gaps in place
        const bool in_place = i == 0 && !narrow;
        team[i] = W(args, offsets, memory, in_place);
        memory += W::bytes(args.n, args.classes, in_place);
    }
    run(args, team, count);
}

template <class T>
bool is_narrow(int64_t classes) {
    return classes < kLanes<T>;
}

}  // namespace

int64_t gap_workspace_bytes(Scalar scalar, int64_t n, int64_t classes, int threads) {
    if (scalar == Scalar::f32)
        return (is_narrow<float>(classes) ? workspace_bytes<float, true> : workspace_bytes<float, false>)(n, classes,
                                                                                                          threads);
    return (is_narrow<double>(classes) ? workspace_bytes<double, true> : workspace_bytes<double, false>)(n, classes,
                                                                                                         threads);
}

void update_gaps(GapUpdate& args) {
    if (args.scalar == Scalar::f32)
        return (is_narrow<float>(args.classes) ? update<float, true> : update<float, false>)(args);
    return (is_narrow<double>(args.classes) ? update<double, true> : update<double, false>)(args);
}

}  // namespace tacfast::cpu::TACFAST_ISA
