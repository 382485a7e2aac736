// What the backends offer to the bindings: plain structs of pointers, sizes and strides.
//
// The caller owns all memory, the workspaces included. Pointers are to host memory for cpu::, to device memory for
// cuda::. Matrices are row-major; a stride counts elements.
#pragma once

#include <cstdint>

namespace tacfast {

enum class Scalar : int { f32 = 0, f64 = 1 };

// Folds n rows of logits into a running gap matrix.
struct GapUpdate {
    Scalar scalar;           // of logits and of gaps
    const void* logits;      // (n, C), unit column stride
    int64_t n;               // rows
    int64_t classes;         // C
    int64_t row_stride;      // of logits
    void* gaps;              // (C, C), in and out: gaps[j*C + k] = max_i (L[i, j] - L[i, k]), the transpose of R
    void* workspace;         // gap_workspace_bytes(...) bytes, 64-byte aligned
    int threads;             // at most so many
    int64_t first_bad = -1;  // out: i*C + j of the first logit that is not finite; gaps are then undefined
};

// Replaces the maximum by an order statistic: the (floor(trim * n_j) + 1)-th largest of L[i, j] - L[i, k] over all i,
// with n_j the number of rows whose largest logit is j (the first such j on a tie).
struct TrimmedGaps {
    Scalar scalar;             // of the rows and of gaps
    const int64_t* rows;       // (n,) addresses of rows of C logits each
    int64_t n;                 //
    int64_t classes;           // C
    double trim;               // in [0, 1)
    void* gaps;                // (C, C), in: the untrimmed gaps as of GapUpdate; out: the trimmed ones, same layout
    void* workspace;           // trim_workspace_bytes(...) bytes, 64-byte aligned
    int threads;               // at most so many
};

namespace cpu {
int64_t gap_workspace_bytes(Scalar scalar, int64_t n, int64_t classes, int threads);
void update_gaps(GapUpdate& args);

int64_t trim_workspace_bytes(Scalar scalar, int64_t n, int64_t classes, int threads);
void trimmed_gaps(const TrimmedGaps& args);

const char* instruction_set();  // the code path in use: "baseline", "avx2" or "avx512"
}  // namespace cpu

}  // namespace tacfast
