// The rank-th largest of many numbers, exactly: neither sorted nor stored, but computed anew for each digit of the
// answer. And trimmed gaps, which are such numbers: for each pair of classes an order statistic over all rows.
//
// The digits are those of an integer key of the same order, found from the highest to the lowest. A pass counts how
// often each value of the digit occurs among the numbers that begin as the answer does; going down from the largest
// value, the count in which the rank falls is the digit, and what is left of the rank is the rank within it.
#pragma once

#include "core/gap_pruning.h"

TACFAST_CORE_BEGIN

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;  // values of a digit
constexpr int kTallyLanes = 32;           // counters per value: as many as a warp has lanes and shared memory banks
constexpr int kChunks = 16;               // of the values, to find the digit in two short walks
constexpr int kChunkDigits = kDigits / kChunks;

template <class T>
struct KeyOf;
template <>
struct KeyOf<float> {
    using Signed = int32_t;
    using Key = uint32_t;
    static constexpr Signed largest = INT32_MAX;
};
template <>
struct KeyOf<double> {
    using Signed = int64_t;
    using Key = uint64_t;
    static constexpr Signed largest = INT64_MAX;
};
template <class T>
using Key = typename KeyOf<T>::Key;

template <class T>
constexpr int kKeyBits = 8 * static_cast<int>(sizeof(T));
template <class T>
constexpr int kPasses = kKeyBits<T> / kDigitBits;

// Numbers as unsigned integers of the same order, and back. -0 must not occur.
template <class T>
TACFAST_HD Key<T> key_of(T number) {
    typename KeyOf<T>::Signed bits;
    __builtin_memcpy(&bits, &number, sizeof bits);
    return static_cast<Key<T>>(ordered_key(bits, KeyOf<T>::largest)) ^ Key<T>(1) << (kKeyBits<T> - 1);
}

template <class T>
TACFAST_HD T number_of(Key<T> key) {
    const auto bits =
        ordered_key(static_cast<typename KeyOf<T>::Signed>(key ^ Key<T>(1) << (kKeyBits<T> - 1)), KeyOf<T>::largest);
    T number;
    __builtin_memcpy(&number, &bits, sizeof number);
    return number;
}

template <class T>
TACFAST_HD int lowest_bit(int pass) {
    return kKeyBits<T> - (pass + 1) * kDigitBits;
}

template <class T>
TACFAST_HD int digit_of(Key<T> key, int pass) {
    return static_cast<int>(key >> lowest_bit<T>(pass)) & (kDigits - 1);
}

template <class T>
TACFAST_HD bool same_beginning(Key<T> a, Key<T> b, int pass) {
    return (a ^ b) >> lowest_bit<T>(pass) >> kDigitBits == 0;  // two shifts: one by all bits is undefined
}

// Several lanes, and several blocks, may count at once.
TACFAST_HD void count_up(uint32_t* counter, uint32_t by) {
#ifdef __CUDA_ARCH__
    atomicAdd(counter, by);
#else
    __atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
#endif
}

// What a team works on: up to kTallyLanes columns of numbers side by side. The width is a power of two; where it is
// below kTallyLanes, each column has several copies of its counters. A warp of kTallyLanes lanes then counts in as many
// different banks, whatever the digits are.
template <class T>
struct RadixTile {
    uint32_t counts[kDigits * kTallyLanes];  // per value of the digit: copies times `width` counters
    uint32_t sums[kChunks * kTallyLanes];    // per chunk of values: `width` counters
    uint32_t rank[kTallyLanes];              // that of the answer among the numbers that begin as it does
    Key<T> found[kTallyLanes];               // the digits of the answer that are known; zeros below
};

template <class Team>
TACFAST_HD void clear_counts(const Team& team, uint32_t* counts) {
    team.each(kDigits * kTallyLanes, [&](int at) { counts[at] = 0; });
    team.sync();
}

// Counts digits of number(i, column), i in [begin, end), column in [0, columns).
template <class T, class Team, class Number>
TACFAST_HD void count_digits(const Team& team, int pass, int64_t begin, int64_t end, int width, int columns,
                             RadixTile<T>& tile, const Number& number) {
    constexpr int kAtOnce = 4;  // numbers under way per lane, to hide the latency of memory
    const int across = team.lanes() < width ? team.lanes() : width, down = team.lanes() / across;
    const int slot = team.rank() / across;
    if (slot < down)
        for (int column = team.rank() % across; column < columns; column += across) {
            uint32_t* counts = tile.counts + slot % (kTallyLanes / width) * width + column;
            const Key<T> found = tile.found[column];
            for (int64_t first = begin + slot; first < end; first += kAtOnce * down) {
                Key<T> keys[kAtOnce];
                for (int u = 0; u < kAtOnce; ++u) {
                    const int64_t i = first + u * down;
                    keys[u] = key_of(number(i < end ? i : first, column));
                }
                for (int u = 0; u < kAtOnce; ++u)
                    if (first + u * down < end && same_beginning<T>(keys[u], found, pass))
                        count_up(counts + digit_of<T>(keys[u], pass) * kTallyLanes, 1);
            }
        }
    team.sync();
}

// Sums the copies of the counters: total(value of the digit * width + column, sum).
template <class T, class Team, class Total>
TACFAST_HD void sum_copies(const Team& team, int width, const RadixTile<T>& tile, const Total& total) {
    team.each(kDigits * width, [&](int at) {
        const uint32_t* counts = tile.counts + at / width * kTallyLanes + at % width;
        uint32_t sum = 0;
        for (int copy = 0; copy < kTallyLanes; copy += width) sum += counts[copy];
        total(at, sum);
    });
}

// Which digit holds the rank, and which rank remains; count(value of the digit, column) is how often it occurs.
template <class T, class Team, class Count>
TACFAST_HD void find_digit(const Team& team, int pass, int width, RadixTile<T>& tile, const Count& count) {
    team.each(kChunks * width, [&](int at) {
        uint32_t sum = 0;
        for (int v = 0; v < kChunkDigits; ++v) sum += count(at / width * kChunkDigits + v, at % width);
        tile.sums[at] = sum;
    });
    team.sync();
    team.each(width, [&](int column) {
        uint32_t rank = tile.rank[column];
        int chunk = kChunks - 1;
        for (; chunk > 0 && tile.sums[chunk * width + column] < rank; --chunk)
            rank -= tile.sums[chunk * width + column];
        int digit = (chunk + 1) * kChunkDigits - 1;
        for (; digit > chunk * kChunkDigits && count(digit, column) < rank; --digit) rank -= count(digit, column);
        tile.rank[column] = rank;
        tile.found[column] |= static_cast<Key<T>>(digit) << lowest_bit<T>(pass);
    });
    team.sync();
}

// The rank-th largest of number(0, column), ..., number(n - 1, column), for all columns at once: leaves its key in
// tile.found. n < 2^32.
template <class T, class Team, class Number>
TACFAST_HD void radix_select(const Team& team, int64_t n, uint32_t rank, int width, int columns, RadixTile<T>& tile,
                             const Number& number) {
    team.each(kTallyLanes, [&](int column) {
        tile.rank[column] = rank;
        tile.found[column] = 0;
    });
    for (int pass = 0; pass < kPasses<T>; ++pass) {
        clear_counts(team, tile.counts);
        count_digits<T>(team, pass, 0, n, width, columns, tile, number);
        find_digit<T>(team, pass, width, tile, [&](int digit, int column) {
            uint32_t sum = 0;
            for (int copy = 0; copy < kTallyLanes; copy += width)
                sum += tile.counts[digit * kTallyLanes + copy + column];
            return sum;
        });
    }
}

// Trimmed gaps: number(i, column) is L[i, j] - L[i, first + column] for a tile, that is for a class j and some k. A
// pass may be cut into slices of the rows, which add to a common record; the next pass begins by reading it.
template <class T>
struct TrimTask {
    const int64_t* rows;        // (n,) addresses of C logits each
    int64_t n;                  // below 2^32
    int64_t classes;            // C
    double trim;                //
    const uint32_t* predicted;  // (C,) rows of each class
    T* gaps;                    // (C, C)
};

// The class of a row, its first largest logit; always a class, even if none of the logits is a number.
template <class Team, class T>
TACFAST_HD int predicted_class(const Team& team, const T* row, int64_t classes) {
    const int found = team.largest(static_cast<int>(classes), [&](int k) { return double(row[k]); }).index;
    return found < 0 ? 0 : found;
}

TACFAST_HD int tile_width(int64_t classes) {
    int width = 2;
    while (width < classes && width < kTallyLanes) width *= 2;
    return width;
}

TACFAST_HD int64_t tile_count(int64_t classes) {
    return (classes + tile_width(classes) - 1) / tile_width(classes) * classes;
}

template <class T>
struct TrimTile {
    const int64_t* rows;
    int64_t j;      // class
    int64_t first;  // k of the first column
    int columns;    // how many
    int width;      // of every tile, a power of two
    uint32_t rank;  // of the answer; 1: the gaps are it

    TACFAST_HD TrimTile(const TrimTask<T>& task, int64_t tile)
        : rows(task.rows), j(tile % task.classes), width(tile_width(task.classes)) {
        first = tile / task.classes * width;
        columns = static_cast<int>(task.classes - first < width ? task.classes - first : width);
        const uint32_t own = task.predicted[j];
        rank = own == 0 ? 1 : static_cast<uint32_t>(trim_rank(task.trim, own));
    }

    TACFAST_HD T operator()(int64_t i, int column) const {
        const T* row = reinterpret_cast<const T*>(rows[i]);
        return row[j] - row[first + column] + T(0);  // + 0: no -0
    }
};

// The diagonal is 0 already, and a gap that is not a number stays so.
template <class Team, class T>
TACFAST_HD void write_trimmed(const Team& team, const TrimTask<T>& task, const TrimTile<T>& numbers,
                              const RadixTile<T>& tile) {
    team.each(numbers.columns, [&](int column) {
        const int64_t k = numbers.first + column;
        T& gap = task.gaps[numbers.j * task.classes + k];
        if (k != numbers.j && gap == gap) gap = number_of<T>(tile.found[column]);
    });
}

template <class Team, class T>
TACFAST_HD void trim_tile(const Team& team, const TrimTask<T>& task, int64_t index, RadixTile<T>& tile) {
    const TrimTile<T> numbers(task, index);
    if (numbers.rank == 1) return;
    radix_select<T>(team, task.n, numbers.rank, numbers.width, numbers.columns, tile, numbers);
    write_trimmed(team, task, numbers, tile);
}

// Brings `tile` to where `pass` begins; `before` is the record of the pass before.
template <class Team, class T>
TACFAST_HD void resume_tile(const Team& team, int pass, const TrimTile<T>& numbers, const RadixTile<T>* before,
                            RadixTile<T>& tile) {
    team.each(kTallyLanes, [&](int column) {
        tile.rank[column] = pass == 0 ? numbers.rank : before->rank[column];
        tile.found[column] = pass == 0 ? 0 : before->found[column];
    });
    if (pass > 0)
        find_digit<T>(team, pass - 1, numbers.width, tile,
                      [&](int digit, int column) { return before->counts[digit * numbers.width + column]; });
}

// Adds the counts of rows [begin, end) to the record of this pass, which starts as zeros.
template <class Team, class T>
TACFAST_HD void count_slice(const Team& team, const TrimTask<T>& task, int64_t index, int pass, int64_t begin,
                            int64_t end, const RadixTile<T>* before, RadixTile<T>& record, RadixTile<T>& tile) {
    const TrimTile<T> numbers(task, index);
    if (numbers.rank == 1) return;
    resume_tile(team, pass, numbers, before, tile);
    if (begin == 0)
        team.each(kTallyLanes, [&](int column) {
            record.rank[column] = tile.rank[column];
            record.found[column] = tile.found[column];
        });
    clear_counts(team, tile.counts);
    count_digits<T>(team, pass, begin, end, numbers.width, numbers.columns, tile, numbers);
    sum_copies<T>(team, numbers.width, tile, [&](int at, uint32_t sum) {
        if (sum != 0) count_up(record.counts + at, sum);
    });
}

template <class Team, class T>
TACFAST_HD void finish_slices(const Team& team, const TrimTask<T>& task, int64_t index, const RadixTile<T>* before,
                              RadixTile<T>& tile) {
    const TrimTile<T> numbers(task, index);
    if (numbers.rank == 1) return;
    resume_tile(team, kPasses<T>, numbers, before, tile);
    write_trimmed(team, task, numbers, tile);
}

TACFAST_CORE_END
