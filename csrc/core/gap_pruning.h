// The gap matrix's algebra that the backends share: when work can be skipped, and which order statistic is
// asked for.
#pragma once

#include "core/config.h"

TACFAST_CORE_BEGIN

// The pruning test. With any offsets a, one per class, L[i, k] + gaps[j, k] >= low_i + weak_j, where
//     low_i = min_k (L[i, k] - a[k])   and   weak_j = min_{k != j} (gaps[j, k] + a[k]),
// so that row i raises no gap of class j if L[i, j] - low_i <= weak_j. Offsets near the columns' means make
// the test sharp. Each rounding is monotone and errs by at most eps/2 of its result, so that lowering both
// minima by a little more than that makes the computed test safe; the caps keep an overflow from looking like
// certainty.
template <class T>
struct Limits;
template <>
struct Limits<float> {
    static constexpr float eps = 1.1920929e-7f, largest = 3.4028235e38f;
};
template <>
struct Limits<double> {
    static constexpr double eps = 2.220446049250313e-16, largest = 1.7976931348623157e308;
};

template <class T>
TACFAST_HD T safe_minimum(T minimum) {
    const T capped = minimum < Limits<T>::largest ? minimum : Limits<T>::largest;
    return capped - 2 * Limits<T>::eps * (capped < 0 ? -capped : capped);
}

template <class T>
TACFAST_HD T safe_offset(T mean) {
    return mean > -Limits<T>::largest / 8 && mean < Limits<T>::largest / 8 ? mean : T(0);
}

// Trimmed gaps are the trim_rank-th largest among the `rows` rows of a class.
TACFAST_HD int64_t trim_rank(double trim, int64_t rows) {
    return static_cast<int64_t>(std::floor(trim * static_cast<double>(rows))) + 1;
}

TACFAST_CORE_END
