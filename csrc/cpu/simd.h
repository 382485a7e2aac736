// Vectors as wide as the instruction set allows, in the compilers' vector extensions: + - < ?: work lane by
// lane.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "core/config.h"

namespace tacfast::cpu::TACFAST_ISA {

using core::kVectorBytes;

// A vector of any number of bytes, and the integer vector of the same shape that its comparisons give.
template <class T, int bytes>
struct VectorOf;
#define TACFAST_VECTOR(scalar, integer, bytes)                        \
    template <>                                                       \
    struct VectorOf<scalar, bytes> {                                  \
        typedef scalar type __attribute__((vector_size(bytes)));      \
        typedef integer int_type __attribute__((vector_size(bytes))); \
        using integer_scalar = integer;                               \
    };
TACFAST_VECTOR(float, int32_t, 16)
TACFAST_VECTOR(float, int32_t, 32)
TACFAST_VECTOR(float, int32_t, 64)
TACFAST_VECTOR(double, int64_t, 16)
TACFAST_VECTOR(double, int64_t, 32)
TACFAST_VECTOR(double, int64_t, 64)
#undef TACFAST_VECTOR

template <class T>
using Vec = typename VectorOf<T, kVectorBytes>::type;
template <class T>
using IntVec = typename VectorOf<T, kVectorBytes>::int_type;
template <class T>
using Int = typename VectorOf<T, kVectorBytes>::integer_scalar;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
template <class T>
constexpr uint32_t kAllLanes = (uint32_t(1) << kLanes<T>)-1;
template <class T>
constexpr T kInf = static_cast<T>(__builtin_inf());

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// The bytes of an array in a workspace, in whole cache lines; and the array itself, cut off the front.
template <class T>
int64_t padded(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
}
template <class T>
void take(char*& memory, T*& array, int64_t count) {
    array = reinterpret_cast<T*>(memory);
    memory += padded<T>(count);
}

template <class T>
TACFAST_HD Vec<T> load(const T* from) {
    Vec<T> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
template <class T>
TACFAST_HD void store(T* to, Vec<T> v) {
    std::memcpy(to, &v, sizeof v);
}
template <class T>
TACFAST_HD Vec<T> broadcast(T x) {
    return x - Vec<T>{};  // not 0 + x, which would turn -0 into +0
}
template <class V>
TACFAST_HD V max(V a, V b) {
    return a > b ? a : b;
}
template <class V>
TACFAST_HD V min(V a, V b) {
    return a < b ? a : b;
}

template <class To, class From>
TACFAST_HD To reinterpret_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// A row's columns from k on; a row narrower than a vector (k = 0) is filled up.
template <bool narrow, class T>
TACFAST_HD Vec<T> load_columns(const T* row, int64_t k, int64_t columns, T fill) {
    if constexpr (narrow) {
        Vec<T> v = broadcast(fill);
#if defined(__AVX512F__)
        const uint32_t mask = (1u << columns) - 1;
        if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_mask_loadu_ps((__m512)v, static_cast<__mmask16>(mask), row);
        if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_mask_loadu_pd((__m512d)v, static_cast<__mmask8>(mask), row);
#endif
        for (int64_t lane = 0; lane < columns; ++lane) v[lane] = row[lane];
        return v;
    } else {
        return load(row + k);
    }
}

// Where the vector of columns starts whose turn is k: the last one of a row overlaps its neighbour.
template <class T>
TACFAST_HD int64_t vector_start(int64_t k, int64_t columns) {
    const int64_t last = columns - kLanes<T>;
    return k <= last ? k : (last > 0 ? last : 0);
}

// One bit per lane: a > b.
template <class T>
TACFAST_HD uint32_t greater(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
    if constexpr (sizeof(T) == 8) return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GT_OQ);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return static_cast<uint32_t>(_mm256_movemask_ps((__m256)(a > b)));
    if constexpr (sizeof(T) == 8) return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)(a > b)));
#elif defined(__SSE2__)
    if constexpr (sizeof(T) == 4) return static_cast<uint32_t>(_mm_movemask_ps((__m128)(a > b)));
    if constexpr (sizeof(T) == 8) return static_cast<uint32_t>(_mm_movemask_pd((__m128d)(a > b)));
#else
    const auto mask = a > b;
    uint32_t bits = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) bits |= (static_cast<uint32_t>(mask[lane]) & 1u) << lane;
    return bits;
#endif
}

template <class T, int bytes = kVectorBytes>
TACFAST_HD T reduce_min(typename VectorOf<T, bytes>::type v) {
    if constexpr (bytes == 16) {
        T least = v[0];
        for (int lane = 1; lane < bytes / static_cast<int>(sizeof(T)); ++lane)
            least = v[lane] < least ? v[lane] : least;
        return least;
    } else {
        typename VectorOf<T, bytes / 2>::type halves[2];
        std::memcpy(halves, &v, sizeof v);
        return reduce_min<T, bytes / 2>(min(halves[0], halves[1]));
    }
}

// The first of a row's largest entries.
template <bool narrow, class T>
TACFAST_HD int64_t first_largest(const T* row, int64_t columns) {
    Vec<T> largest = broadcast(-kInf<T>);
    for (int64_t k = 0; k < columns; k += kLanes<T>)
        largest = max(load_columns<narrow>(row, vector_start<T>(k, columns), columns, -kInf<T>), largest);
    largest = broadcast(-reduce_min<T>(-largest));
    for (int64_t k = 0; k < columns; k += kLanes<T>) {
        const int64_t start = vector_start<T>(k, columns);
        const uint32_t less = greater<T>(largest, load_columns<narrow>(row, start, columns, -kInf<T>));
        if (less != kAllLanes<T>) return start + __builtin_ctz(~less);
    }
    return 0;  // only where a NaN is among them
}

}  // namespace tacfast::cpu::TACFAST_ISA
