// What depends on W and b alone: the rows in float64, centred, and their Gram matrix.
#include "core/team.h"
#include "cpu/kernels.h"
#include "cpu/products.h"
#include "cpu/threads.h"

namespace tacfast::cpu::TACFAST_ISA {
namespace {

// The parts of the prepared head, writable.
struct Parts {
    int64_t classes, dim, stride;
    double *rows, *centred, *gram, *bias, *offset, *longest;

    explicit Parts(const HeadPreparation& args)
        : classes(args.classes),
          dim(args.dim),
          stride(padded_dim(dim)),
          rows(args.memory),
          centred(rows + classes * stride),
          gram(centred + classes * stride),
          bias(gram + classes * classes),
          offset(bias + classes),
          longest(offset + classes) {}
};

// Copies W; leaves the sum of its rows in the first row of `centred`.
template <class T>
void copy(const HeadPreparation& args, const Parts& head) {
    const int64_t d = head.dim, stride = head.stride;
    double* TACFAST_RESTRICT total = head.centred;
    for (int64_t x = 0; x < stride; ++x) total[x] = 0;
    double longest2 = 0;
    for (int64_t j = 0; j < head.classes; ++j) {
        const T* TACFAST_RESTRICT from = static_cast<const T*>(args.W) + j * args.row_stride;
        double* TACFAST_RESTRICT row = head.rows + j * stride;
        for (int64_t x = 0; x < d; ++x) {
            row[x] = double(from[x]);
            total[x] += row[x];
        }
        for (int64_t x = d; x < stride; ++x) row[x] = 0;
        const double norm2 = core::SerialTeam{}.sum(int(d), [=](int x) { return row[x] * row[x]; });
        if (norm2 > longest2) longest2 = norm2;
    }
    *head.longest = std::sqrt(longest2);
}

// From the last row to the first, which holds the sum.
void centre(const Parts& head) {
    const int64_t C = head.classes, stride = head.stride;
    double* TACFAST_RESTRICT mean = head.centred;
    for (int64_t x = 0; x < stride; ++x) mean[x] /= double(C);
    for (int64_t j = C - 1; j > 0; --j)
        for (int64_t x = 0; x < stride; ++x) head.centred[j * stride + x] = head.rows[j * stride + x] - mean[x];
    for (int64_t x = 0; x < stride; ++x) mean[x] = head.rows[x] - mean[x];
}

// Returns the mean.
double centre_bias(const HeadPreparation& args, const Parts& head) {
    const int64_t C = head.classes;
    double sum = 0;
    for (int64_t j = 0; j < C; ++j) sum += head.bias[j] = args.bias == nullptr ? 0.0 : args.bias[j];
    const double mean = sum / double(C);
    for (int64_t j = 0; j < C; ++j) head.offset[j] = head.bias[j] - mean;
    return mean;
}

}  // namespace

void prepare_head(HeadPreparation& args) {
    const Parts head(args);
    const int64_t C = head.classes, stride = head.stride;
    args.scalar == Scalar::f64 ? copy<double>(args, head) : copy<float>(args, head);
    centre(head);
    const double mean = centre_bias(args, head);
    constexpr int64_t kBlock = 16;
    const int threads = C * C * stride < (int64_t(1) << 20) ? 1 : args.threads;
    auto block = [&](int, int64_t task) {
        const int64_t first = task * kBlock, count = first + kBlock < C ? kBlock : C - first;
        // The lower triangle; the upper one is its mirror, to the bit.
        row_products(head.centred + first * stride, count, head.centred, first + count, stride, head.gram + first * C,
                     C);
    };
    parallel_for(threads, (C + kBlock - 1) / kBlock, block);
    for (int64_t i = 0; i < C; ++i)
        for (int64_t j = i + 1; j < C; ++j) head.gram[i * C + j] = head.gram[j * C + i];
    // What is not finite in W makes its column of the mean row so, and with that every entry of the Gram matrix.
    args.finite = std::isfinite(head.gram[0] + mean);
}

}  // namespace tacfast::cpu::TACFAST_ISA
