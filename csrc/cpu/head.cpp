// What depends on W alone: its rows in float64, centred, and their Gram matrix.
#include "cpu/kernels.h"
#include "cpu/products.h"
#include "cpu/threads.h"

namespace tacfast::cpu::TACFAST_ISA {
namespace {

template <class T>
void centre(const T* W, HeadPreparation& args) {
    const int64_t C = args.classes, d = args.dim, stride = padded_dim(d);
    double longest2 = 0;
    for (int64_t j = 0; j < C; ++j) {
        double norm2 = 0;
        for (int64_t x = 0; x < d; ++x) {
            const double w = W[j * args.row_stride + x];
            args.rows[j * stride + x] = w;
            norm2 += w * w;
        }
        for (int64_t x = d; x < stride; ++x) args.rows[j * stride + x] = 0;
        if (norm2 > longest2) longest2 = norm2;
    }
    args.longest = std::sqrt(longest2);
    double mean[8];
    for (int64_t x = 0; x < stride; x += 8) {
        for (double& m : mean) m = 0;
        for (int64_t j = 0; j < C; ++j)
            for (int l = 0; l < 8; ++l) mean[l] += args.rows[j * stride + x + l];
        for (double& m : mean) m /= static_cast<double>(C);
        for (int64_t j = 0; j < C; ++j)
            for (int l = 0; l < 8; ++l) args.centred[j * stride + x + l] = args.rows[j * stride + x + l] - mean[l];
    }
}

}  // namespace

void prepare_head(HeadPreparation& args) {
    const int64_t C = args.classes, stride = padded_dim(args.dim);
    if (args.scalar == Scalar::f64) {
        centre(static_cast<const double*>(args.W), args);
    } else {
        centre(static_cast<const float*>(args.W), args);
    }
    constexpr int64_t kBlock = 16;
    const int threads = C * C * stride < (int64_t(1) << 20) ? 1 : args.threads;
    auto block = [&](int, int64_t task) {
        const int64_t first = task * kBlock, count = first + kBlock < C ? kBlock : C - first;
        // The lower triangle; the upper one is its mirror, to the bit.
        row_products(args.centred + first * stride, count, args.centred, first + count, stride, args.gram + first * C,
                     C);
    };
    parallel_for(threads, (C + kBlock - 1) / kBlock, block);
    for (int64_t i = 0; i < C; ++i)
        for (int64_t j = i + 1; j < C; ++j) args.gram[i * C + j] = args.gram[j * C + i];
}

}  // namespace tacfast::cpu::TACFAST_ISA
