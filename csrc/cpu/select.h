// An order statistic per lane, without sorting.
#pragma once

#include "core/gap_pruning.h"
#include "cpu/simd.h"

namespace tacfast::cpu::TACFAST_ISA {

// Half-way between two numbers in the order of their representations.
template <class T>
TACFAST_HD Vec<T> middle(Vec<T> low, Vec<T> high) {
    constexpr Int<T> largest = sizeof(T) == 4 ? Int<T>(INT32_MAX) : Int<T>(INT64_MAX);
    const IntVec<T> a = core::ordered_key(reinterpret_bits<IntVec<T>>(low), largest);
    const IntVec<T> b = core::ordered_key(reinterpret_bits<IntVec<T>>(high), largest);
    return reinterpret_bits<Vec<T>>(core::ordered_key((a & b) + ((a ^ b) >> 1), largest));
}

// The rank-th largest, in each lane, of values(0), ..., values(number - 1); at least `rank` of them are >=
// bottom.
//
// Keeps a bracket [low, high] whose ends are among the values. Each pass counts what lies above a point
// between them and moves an end to the nearest value, so that the bracket always shrinks. The point is
// interpolated at first; after that it halves the representations between, which bounds the passes whatever
// the values are.
template <class T, class Values>
Vec<T> select(const Values& values, int64_t number, int64_t rank, Vec<T> bottom) {
    constexpr int interpolations = 8;
    const Vec<T> infinity = broadcast(kInf<T>);
    Vec<T> low = infinity, high = -infinity;
    for (int64_t i = 0; i < number; ++i) {
        low = min(low, values(i));
        high = max(high, values(i));
    }
    low = max(low, bottom);
    const Int<T> wanted = static_cast<Int<T>>(rank);
    IntVec<T> from_low = static_cast<Int<T>>(number) - IntVec<T>{}, above_high = {};  // how many values
    for (int pass = 0; greater<T>(high, low) != 0; ++pass) {
        const Vec<T> share = (__builtin_convertvector(from_low - wanted, Vec<T>) + T(0.5)) /
                             __builtin_convertvector(from_low - above_high, Vec<T>);
        Vec<T> point = low + (high - low) * share;
        const IntVec<T> usable = (point >= low) & (point < high);
        point = pass < interpolations ? (usable ? point : middle<T>(low, high)) : middle<T>(low, high);

        IntVec<T> count = {};
        Vec<T> next_above = infinity, next_below = -infinity;
        for (int64_t i = 0; i < number; ++i) {
            const Vec<T> value = values(i);
            const IntVec<T> above = value > point;
            count -= above;
            next_above = min(next_above, above ? value : infinity);
            next_below = max(next_below, above ? -infinity : value);
        }
        const IntVec<T> open = low < high, enough = count >= wanted;
        const IntVec<T> at_above = open & (count == wanted), at_below = open & (count == wanted - 1);
        from_low = (open & enough) ? count : from_low;
        above_high = (open & ~enough) ? count : above_high;
        low = (open & enough) ? next_above : at_below ? next_below : low;
        high = (open & ~enough) ? next_below : at_above ? next_above : high;
    }
    return low;
}

}  // namespace tacfast::cpu::TACFAST_ISA
