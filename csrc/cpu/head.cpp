// What depends on W and b alone: the rows in float64, centred, and their Gram matrix.
#include "core/team.h"
#include "cpu/kernels.h"
#include "cpu/products.h"
#include "cpu/threads.h"

namespace tacfast::cpu::TACFAST_ISA {
namespace {

// Copies W and returns the largest row norm; leaves the sum of the rows in the first row of `centred`.
template <class T>
double copy(const T* W, const HeadPreparation& args) {
    const int64_t d = args.dim, stride = padded_dim(d);
    double* TACFAST_RESTRICT total = args.centred;
    for (int64_t x = 0; x < stride; ++x) total[x] = 0;
    double longest2 = 0;
    for (int64_t j = 0; j < args.classes; ++j) {
        const T* TACFAST_RESTRICT from = W + j * args.row_stride;
        double* TACFAST_RESTRICT row = args.rows + j * stride;
        for (int64_t x = 0; x < d; ++x) {
            row[x] = double(from[x]);
            total[x] += row[x];
        }
        for (int64_t x = d; x < stride; ++x) row[x] = 0;
        const double norm2 = core::SerialTeam{}.sum(int(d), [=](int x) { return row[x] * row[x]; });
        if (norm2 > longest2) longest2 = norm2;
    }
    return std::sqrt(longest2);
}

// From the last row to the first, which holds the sum.
void centre(const HeadPreparation& args) {
    const int64_t C = args.classes, stride = padded_dim(args.dim);
    double* TACFAST_RESTRICT mean = args.centred;
    for (int64_t x = 0; x < stride; ++x) mean[x] /= double(C);
    for (int64_t j = C - 1; j > 0; --j)
        for (int64_t x = 0; x < stride; ++x) args.centred[j * stride + x] = args.rows[j * stride + x] - mean[x];
    for (int64_t x = 0; x < stride; ++x) mean[x] = args.rows[x] - mean[x];
}

// Returns the mean.
double centre_bias(const HeadPreparation& args) {
    const int64_t C = args.classes;
    double sum = 0;
    for (int64_t j = 0; j < C; ++j) sum += args.biases[j] = args.bias == nullptr ? 0.0 : args.bias[j];
    const double mean = sum / double(C);
    for (int64_t j = 0; j < C; ++j) args.biases[C + j] = args.biases[j] - mean;
    return mean;
}

}  // namespace

void prepare_head(HeadPreparation& args) {
    const int64_t C = args.classes, stride = padded_dim(args.dim);
    args.biases[2 * C] = args.scalar == Scalar::f64 ? copy(static_cast<const double*>(args.W), args)
                                                    : copy(static_cast<const float*>(args.W), args);
    centre(args);
    const double mean = centre_bias(args);
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
    // What is not finite in W makes its column of the mean row so, and with that every entry of the Gram matrix.
    args.finite = std::isfinite(args.gram[0] + mean);
}

}  // namespace tacfast::cpu::TACFAST_ISA
