// What the backends offer to the bindings: plain structs of pointers, sizes and strides.
//
// The caller owns all memory, the workspaces included. Pointers are to host memory for cpu::, to device memory for
// cuda::. Matrices are row-major; a stride counts elements.
#pragma once

#include "core/arguments.h"

namespace tacfast {

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

// Folds n rows of latents into a running gap matrix, without storing their logits.
struct FusedGaps {
    Scalar scalar;          // of weights, offset and gaps
    Scalar latent_scalar;   // f32, f16 or bf16 with f32; f64 with f64
    const void* latents;    // (n, d), unit column stride
    int64_t n;              // rows
    int64_t dim;            // d
    int64_t row_stride;     // of latents
    const void* weights;    // (C, d), unit column stride
    int64_t weight_stride;  // of weights
    const void* offset;     // (C,)
    int64_t classes;        // C
    void* gaps;             // as of GapUpdate
    void* workspace;        // fused_workspace_bytes(...) bytes, 64-byte aligned
};

// Replaces the maximum by an order statistic: the (floor(trim * n_j) + 1)-th largest of L[i, j] - L[i, k] over the n_j
// rows i whose largest logit is j (the first such j on a tie). Where n_j or trim is 0, the maximum over all rows stays.
struct TrimmedGaps {
    Scalar scalar;        // of the rows and of gaps
    const int64_t* rows;  // (n,) addresses of rows of C logits each
    int64_t n;            //
    int64_t classes;      // C
    double trim;          // in [0, 1)
    void* gaps;           // (C, C), in: the untrimmed gaps as of GapUpdate; out: the trimmed ones, same layout
    void* workspace;      // trim_workspace_bytes(...) bytes, 64-byte aligned
    int threads;          // at most so many
};

// What depends on W and b alone.
struct HeadPreparation {
    Scalar scalar;       // of W
    const void* W;       // (C, d), unit column stride
    int64_t classes;     // C
    int64_t dim;         // d
    int64_t row_stride;  // of W
    const double* bias;  // (C,) or null
    double* memory;      // prepared_size(C, d) doubles, out: see PreparedHead
    int threads;         // at most so many
    bool finite = true;  // out: whether all of W and b is
};

// Logits of a few samples, up to a constant per sample: latents * centred' + (b - its mean), summed in float64.
struct LogitProduct {
    Scalar scalar;        // of latents and of logits
    PreparedHead head;    //
    const void* latents;  // (n, d), unit column stride
    int64_t n;            //
    int64_t row_stride;   // of latents
    void* logits;         // (n, C), out, contiguous
    void* workspace;      // n * (padded_dim(d) + C) doubles, 64-byte aligned
};

// Everything of a small problem, from the latents to the solutions, on the calling thread.
struct WholeSolve {
    Scalar scalar;           // of latents and of all that is handed out
    const void* latents;     // (n, d), unit column stride
    int64_t n;               //
    int64_t latent_stride;   //
    Scalar weight_scalar;    // of W
    const void* W;           // (C, d), unit column stride
    int64_t weight_stride;   //
    const double* bias;      // (C,) or null
    int64_t classes;         // C
    int64_t dim;             // d
    double same_share;       // as of PreparedHead
    double shortest;         // the longest row of W must be no shorter, and no longer than its inverse
    const int64_t* targets;  // (K,) the classes to solve for, from here on as of ClassSolve
    int64_t count;           // K
    double margin;           //
    double tol;              //
    int max_iter;            //
    void* gaps;              // (C, C), out: R
    void* perturbations;     // (K, d), out
    void* norms;             // (K,), out
    int8_t* status;          // (K,), out
    int32_t* iterations;     // (K,), out
    void* duals;             // (K, C), out
    double* certificate;     // (kCertificateFields, K), out
    void* workspace;         // whole_workspace_bytes(...) bytes, 64-byte aligned
};

namespace cpu {
// prepare_head, multiply_logits, update_gaps and solve_classes, to the same bits. False, and nothing to be read, where
// W, the bias or a logit is not finite, or W too short or too long. The size of the workspace depends on the sizes and
// the scalar alone.
int64_t whole_workspace_bytes(const WholeSolve& args);
bool solve_whole(const WholeSolve& args);

void prepare_head(HeadPreparation& args);
void multiply_logits(const LogitProduct& args);

int64_t solve_workspace_bytes(int64_t classes, int64_t dim, int threads);
void solve_classes(const ClassSolve& args);

int64_t sample_workspace_bytes(int64_t classes, int64_t dim, int64_t count, int threads);
void solve_samples(const SampleSolve& args);

int64_t gap_workspace_bytes(Scalar scalar, int64_t n, int64_t classes, int threads);
void update_gaps(GapUpdate& args);

int64_t trim_workspace_bytes(Scalar scalar, int64_t n, int64_t classes);
void trimmed_gaps(const TrimmedGaps& args);

const char* instruction_set();  // the code path in use: "baseline", "avx2" or "avx512"
}  // namespace cpu

namespace cuda {
struct DeviceReport {
    int count = 0;             // usable devices
    int driver = 0;            // CUDA version that the driver supports, 1000 * major + 10 * minor; 0: no driver
    int runtime = 0;           // CUDA version that this build was linked with
    int error = 0;             // cudaError_t of the count
    const char* message = "";  // what the error means
};
DeviceReport devices();

// Where a launch goes.
struct Queue {
    int device;
    void* stream;  // a cudaStream_t
};

// What went wrong; `kernel` is null when nothing did.
struct Fault {
    const char* kernel = nullptr;
    int code = 0;              // cudaError_t
    const char* message = "";  // what it means
};

// All of these only put work on the queue: they allocate nothing, wait for nothing, and can be captured in a graph.
// `threads` is not looked at. What the samples spoil (a logit that is not finite) becomes NaN in row and column of its
// class, and GapUpdate::first_bad stays -1.
int64_t gap_workspace_bytes(Scalar scalar, int64_t n, int64_t classes);
Fault update_gaps(const GapUpdate& args, Queue queue);
Fault update_gaps_plain(const GapUpdate& args, Queue queue);  // the same without asynchronous copies

int64_t fused_workspace_bytes(Scalar scalar, int64_t classes);  // 0: too many classes for update_gaps_fused
Fault update_gaps_fused(const FusedGaps& args, Queue queue);

int64_t trim_workspace_bytes(Scalar scalar, int64_t n, int64_t classes);
Fault trimmed_gaps(const TrimmedGaps& args, Queue queue);

int64_t solve_workspace_bytes(int64_t classes, int64_t dim, int64_t count);
Fault solve_classes(const ClassSolve& args, Queue queue);

int64_t sample_workspace_bytes(int64_t classes, int64_t dim, int64_t n, int64_t count);
Fault solve_samples(const SampleSolve& args, Queue queue);
}  // namespace cuda

}  // namespace tacfast
