// All stages of a small problem in one call, because each call from Python costs as much as the mathematics of one.
#include <cmath>

#include "backend.h"

namespace tacfast::cpu {
namespace {

constexpr int64_t kAlignment = 64;

// Where the parts of the workspace begin, in bytes.
struct Layout {
    int64_t memory, logits, gaps, product, update, solve, total;

    explicit Layout(const WholeSolve& args) {
        const int64_t C = args.classes, d = args.dim, width = args.scalar == Scalar::f64 ? 8 : 4;
        int64_t next = 0;
        auto place = [&next](int64_t bytes) {
            const int64_t begin = next;
            next += (bytes + kAlignment - 1) / kAlignment * kAlignment;
            return begin;
        };
        memory = place(8 * prepared_size(C, d));
        logits = place(width * args.n * C);
        gaps = place(width * C * C);
        product = place(8 * args.n * (padded_dim(d) + C));
        update = place(gap_workspace_bytes(args.scalar, args.n, C, 1));
        solve = place(solve_workspace_bytes(C, d, 1));
        total = next;
    }
};

// R is the transpose of what the fold leaves.
template <class T>
void transpose(const void* from, void* to, int64_t side) {
    const T* in = static_cast<const T*>(from);
    T* out = static_cast<T*>(to);
    for (int64_t k = 0; k < side; ++k)
        for (int64_t j = 0; j < side; ++j) out[k * side + j] = in[j * side + k];
}

template <class T>
void fill(void* to, int64_t count, T value) {
    for (int64_t i = 0; i < count; ++i) static_cast<T*>(to)[i] = value;
}

}  // namespace

int64_t whole_workspace_bytes(const WholeSolve& args) { return Layout(args).total; }

bool solve_whole(const WholeSolve& args) {
    const int64_t C = args.classes, d = args.dim;
    const Layout layout(args);
    auto at = [&](int64_t offset) { return static_cast<char*>(args.workspace) + offset; };
    double* memory = reinterpret_cast<double*>(at(layout.memory));
    HeadPreparation head{args.weight_scalar, args.W, C, d, args.weight_stride, args.bias, memory, 1};
    prepare_head(head);
    const PreparedHead prepared{memory, C, d, args.same_share};
    const double longest = prepared.longest();
    if (!head.finite || longest < args.shortest || longest > 1 / args.shortest) return false;
    multiply_logits(
        {args.scalar, prepared, args.latents, args.n, args.latent_stride, at(layout.logits), at(layout.product)});
    const bool wide = args.scalar == Scalar::f64;
    wide ? fill<double>(at(layout.gaps), C * C, -INFINITY) : fill<float>(at(layout.gaps), C * C, -INFINITY);
    GapUpdate update{args.scalar, at(layout.logits), args.n, C, C, at(layout.gaps), at(layout.update), 1};
    update_gaps(update);
    if (update.first_bad >= 0) return false;
    (wide ? transpose<double> : transpose<float>)(at(layout.gaps), args.gaps, C);
    solve_classes({args.scalar,
                   prepared,
                   args.gaps,
                   C,
                   1,
                   args.targets,
                   args.count,
                   0,
                   args.count,
                   args.margin,
                   args.tol,
                   args.max_iter,
                   int(C),
                   nullptr,
                   args.perturbations,
                   args.norms,
                   args.status,
                   args.iterations,
                   args.duals,
                   args.certificate,
                   at(layout.solve),
                   1});
    return true;
}

}  // namespace tacfast::cpu
