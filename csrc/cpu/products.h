// Inner products of rows in float64, by register tiles. Every product is summed in the same order whatever tile, block
// or thread computes it, so the result does not depend on how the work was cut.
#pragma once

#include "core/config.h"

namespace tacfast::cpu::TACFAST_ISA {

using core::Doubles, core::kDoubles;

// The sum of a vector's entries, by halves.
template <int bytes>
inline double horizontal_sum(const double __attribute__((vector_size(bytes))) & entries) {
    if constexpr (bytes == 16) {
        return entries[0] + entries[1];
    } else {
        double __attribute__((vector_size(bytes / 2))) halves[2];
        __builtin_memcpy(halves, &entries, bytes);
        return horizontal_sum<bytes / 2>(halves[0] + halves[1]);
    }
}

// out[r * out_stride + q] = x_r'y_q for M rows x and N rows y, all of `stride` entries, a multiple of eight.
template <int M, int N>
inline void product_tile(const double* x, const double* y, int64_t stride, double* out, int64_t out_stride) {
    Doubles sum[M][N] = {};
    for (int64_t t = 0; t < stride; t += kDoubles) {
        Doubles right[N];
        for (int q = 0; q < N; ++q) right[q] = *reinterpret_cast<const Doubles*>(y + q * stride + t);
        for (int r = 0; r < M; ++r) {
            const Doubles left = *reinterpret_cast<const Doubles*>(x + r * stride + t);
            for (int q = 0; q < N; ++q) sum[r][q] += left * right[q];
        }
    }
    for (int r = 0; r < M; ++r)
        for (int q = 0; q < N; ++q) out[r * out_stride + q] = horizontal_sum<core::kVectorBytes>(sum[r][q]);
}

// out (count_x, count_y) = x y'.
inline void row_products(const double* x, int64_t count_x, const double* y, int64_t count_y, int64_t stride,
                         double* out, int64_t out_stride) {
    constexpr int M = 4, N = core::kVectorBytes == 64 ? 4 : 2;
    for (int64_t r = 0; r < count_x; r += M) {
        const bool full = r + M <= count_x;
        int64_t q = 0;
        for (; full && q + N <= count_y; q += N)
            product_tile<M, N>(x + r * stride, y + q * stride, stride, out + r * out_stride + q, out_stride);
        for (; q < count_y; ++q)
            for (int64_t i = r; i < r + M && i < count_x; ++i)
                product_tile<1, 1>(x + i * stride, y + q * stride, stride, out + i * out_stride + q, out_stride);
    }
}

}  // namespace tacfast::cpu::TACFAST_ISA
