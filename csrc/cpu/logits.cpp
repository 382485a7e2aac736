// Logits of so few samples that waking threads for a matrix product costs more than the product.
#include "cpu/kernels.h"
#include "cpu/products.h"

namespace tacfast::cpu::TACFAST_ISA {
namespace {

template <class T>
void multiply(const LogitProduct& args) {
    const int64_t n = args.n, C = args.head.classes, d = args.head.dim, stride = padded_dim(d);
    const T* latents = static_cast<const T*>(args.latents);
    double* wide = static_cast<double*>(args.workspace);
    double* products = wide + n * stride;
    for (int64_t i = 0; i < n; ++i) {
        double* TACFAST_RESTRICT row = wide + i * stride;
        const T* TACFAST_RESTRICT from = latents + i * args.row_stride;
        for (int64_t x = 0; x < d; ++x) row[x] = double(from[x]);
        for (int64_t x = d; x < stride; ++x) row[x] = 0;
    }
    row_products(wide, n, args.head.centred(), C, stride, products, C);
    const double* TACFAST_RESTRICT offset = args.head.offset();
    T* TACFAST_RESTRICT logits = static_cast<T*>(args.logits);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < C; ++j) logits[i * C + j] = T(products[i * C + j] + offset[j]);
}

}  // namespace

void multiply_logits(const LogitProduct& args) {
    args.scalar == Scalar::f64 ? multiply<double>(args) : multiply<float>(args);
}

}  // namespace tacfast::cpu::TACFAST_ISA
