// The functions that exist once per instruction set, and the choice among them.
#pragma once

#include "backend.h"

namespace tacfast::cpu {

struct Kernels {
    const char* name;
    void (*prepare_head)(HeadPreparation&);
    void (*multiply_logits)(const LogitProduct&);
    int64_t (*solve_workspace_bytes)(int64_t classes, int64_t dim, int threads);
    void (*solve_classes)(const ClassSolve&);
    int64_t (*sample_workspace_bytes)(int64_t classes, int64_t dim, int64_t count, int threads);
    void (*solve_samples)(const SampleSolve&);
    int64_t (*gap_workspace_bytes)(Scalar, int64_t n, int64_t classes, int threads);
    void (*update_gaps)(GapUpdate&);
    int64_t (*trim_workspace_bytes)(Scalar, int64_t n, int64_t classes);
    void (*trimmed_gaps)(const TrimmedGaps&);
};

// Declares the entry points of one instruction set and gathers them in a table.
#define TACFAST_DECLARE_ISA(isa)                                                                             \
    namespace isa {                                                                                          \
    void prepare_head(HeadPreparation&);                                                                     \
    void multiply_logits(const LogitProduct&);                                                               \
    int64_t solve_workspace_bytes(int64_t, int64_t, int);                                                    \
    void solve_classes(const ClassSolve&);                                                                   \
    int64_t sample_workspace_bytes(int64_t, int64_t, int64_t, int);                                          \
    void solve_samples(const SampleSolve&);                                                                  \
    int64_t gap_workspace_bytes(Scalar, int64_t, int64_t, int);                                              \
    void update_gaps(GapUpdate&);                                                                            \
    int64_t trim_workspace_bytes(Scalar, int64_t, int64_t);                                                  \
    void trimmed_gaps(const TrimmedGaps&);                                                                   \
    constexpr Kernels kernels{#isa,          prepare_head,           multiply_logits, solve_workspace_bytes, \
                              solve_classes, sample_workspace_bytes, solve_samples,   gap_workspace_bytes,   \
                              update_gaps,   trim_workspace_bytes,   trimmed_gaps};                          \
    }

TACFAST_DECLARE_ISA(baseline)
TACFAST_DECLARE_ISA(avx2)
TACFAST_DECLARE_ISA(avx512)

}  // namespace tacfast::cpu
