// Radix selection: an order statistic of each of several columns of numbers, exactly, by any team, whatever the order
// of the numbers. They must be at least +0: such numbers are in the order of their bits.
//
// The digits are those of the bits, found from the highest to the lowest. A pass counts how often each value of the
// digit occurs among the numbers that begin as the answer does; going down from the largest value, the count in which
// the rank falls is the digit, and what is left of the rank is the rank within it.
#pragma once

#include "core/config.h"

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
    using type = uint32_t;
};
template <>
struct KeyOf<double> {
    using type = uint64_t;
};
template <class T>
using Key = typename KeyOf<T>::type;

template <class T>
constexpr int kKeyBits = 8 * static_cast<int>(sizeof(T));
template <class T>
constexpr int kPasses = kKeyBits<T> / kDigitBits;

// Numbers as unsigned integers, and back.
template <class T>
TACFAST_HD Key<T> key_of(T number) {
    Key<T> key;
    __builtin_memcpy(&key, &number, sizeof key);
    return key;
}

template <class T>
TACFAST_HD T number_of(Key<T> key) {
    T number;
    __builtin_memcpy(&number, &key, sizeof number);
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

// Returns what the counter was. Several lanes, and several blocks, may count at once.
TACFAST_HD uint32_t count_up(uint32_t* counter) {
#ifdef __CUDA_ARCH__
    return atomicAdd(counter, 1u);
#else
    return __atomic_fetch_add(counter, 1u, __ATOMIC_RELAXED);
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

// Counts digits of number(i, column), i in [0, n), column in [0, columns).
template <class T, class Team, class Number>
TACFAST_HD void count_digits(const Team& team, int pass, int64_t n, int width, int columns, RadixTile<T>& tile,
                             const Number& number) {
    constexpr int kAtOnce = 4;  // numbers under way per lane, to hide the latency of memory
    const int across = team.lanes() < width ? team.lanes() : width, down = team.lanes() / across;
    const int slot = team.rank() / across;
    if (slot < down)
        for (int column = team.rank() % across; column < columns; column += across) {
            uint32_t* counts = tile.counts + slot % (kTallyLanes / width) * width + column;
            const Key<T> found = tile.found[column];
            for (int64_t first = slot; first < n; first += kAtOnce * down) {
                Key<T> keys[kAtOnce];
                for (int u = 0; u < kAtOnce; ++u) {
                    const int64_t i = first + u * down;
                    keys[u] = key_of(number(i < n ? i : first, column));
                }
                for (int u = 0; u < kAtOnce; ++u)
                    if (first + u * down < n && same_beginning<T>(keys[u], found, pass))
                        count_up(counts + digit_of<T>(keys[u], pass) * kTallyLanes);
            }
        }
    team.sync();
}

// Which digit holds the rank, and which rank remains.
template <class T, class Team>
TACFAST_HD void find_digit(const Team& team, int pass, int width, RadixTile<T>& tile) {
    auto count = [&](int digit, int column) {
        uint32_t sum = 0;
        for (int copy = 0; copy < kTallyLanes; copy += width) sum += tile.counts[digit * kTallyLanes + copy + column];
        return sum;
    };
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
        team.each(kDigits * kTallyLanes, [&](int at) { tile.counts[at] = 0; });
        team.sync();
        count_digits<T>(team, pass, n, width, columns, tile, number);
        find_digit<T>(team, pass, width, tile);
    }
}

TACFAST_CORE_END
