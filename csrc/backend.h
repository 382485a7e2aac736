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
    double* rows;        // (C, padded_dim(d)), out: W; zeros in the padding
    double* centred;     // (C, padded_dim(d)), out: W minus its mean row; zeros in the padding
    const double* bias;  // (C,) or null
    double* gram;        // (C, C), out: centred * centred'
    double* biases;      // (2 C + 1,), out: b or zeros, b minus its mean, and the largest |w_j|
    int threads;         // at most so many
    bool finite = true;  // out: whether all of W and b is
};

// Logits of a few samples, up to a constant per sample: latents * centred' + (b - its mean), summed in float64.
struct LogitProduct {
    Scalar scalar;          // of latents and of logits
    const void* latents;    // (n, d), unit column stride
    int64_t n;              //
    int64_t classes;        // C
    int64_t dim;            // d
    int64_t row_stride;     // of latents
    const double* centred;  // as HeadPreparation left them
    const double* biases;   //
    void* logits;           // (n, C), out, contiguous
    void* workspace;        // n * (padded_dim(d) + C) doubles, 64-byte aligned
};

// Rows of float64 matrices start on 64-byte boundaries.
constexpr int64_t padded_dim(int64_t d) { return (d + 7) / 8 * 8; }

constexpr int kCertificateFields = 6;  // primal, dual, stationarity, gap, lower, upper

// Status values, as in tacfast.Status; kCrowded never leaves the package.
enum StatusCode : int8_t {
    kOptimal = 0,
    kInfeasible = 1,
    kMaxIter = 2,
    kInaccurate = 3,
    kInvalidInput = 4,
    kCrowded = 5,  // gave up because the active set outgrew max_active
};

// The class-wise QPs from the gap matrix.
struct ClassSolve {
    Scalar scalar;           // of gaps, perturbations, norms and duals
    const double* rows;      // as HeadPreparation left them
    const double* centred;   //
    const double* gram;      //
    double longest;          //
    int64_t classes;         // C
    int64_t dim;             // d
    const double* bias;      // (C,) or null
    double same;             // rows of W closer than this are equal
    const void* gaps;        // R[k, j] at k * gap_strides[0] + j * gap_strides[1]
    int64_t gap_strides[2];  //
    const int64_t* targets;  // (K,) the classes to solve for
    int64_t count;           // K
    double margin;           //
    double tol;              // on the certificate
    int max_iter;            // adds and drops per class
    int max_active;          // size of the active set at which to give up as kCrowded
    const double* guess;     // (K, C) multipliers to try first and to take the support of, or null
    void* perturbations;     // (K, d), out
    void* norms;             // (K,), out
    int8_t* status;          // (K,), out
    void* duals;             // (K, C), out
    double* certificate;     // (kCertificateFields, K), out
    void* workspace;         // solve_workspace_bytes(...) bytes, 64-byte aligned
    int threads;             // at most so many
};

// One QP for every sample and class.
struct SampleSolve {
    Scalar scalar;           // of logits, norms and perturbations
    const double* rows;      // as HeadPreparation left them
    const double* gram;      //
    double longest;          //
    int64_t classes;         // C
    int64_t dim;             // d
    const double* bias;      // (C,) or null
    double same;             // rows of W closer than this are equal
    const void* logits;      // (n, C), contiguous
    int64_t n;               //
    const int64_t* targets;  // (K,)
    int64_t count;           // K
    double margin;           //
    double tol;              //
    int max_iter;            //
    void* norms;             // (n, K), out
    int8_t* status;          // (n, K), out
    void* perturbations;     // (n, K, d), out, or null
    double* certificate;     // (kCertificateFields, K), in and out: the worst so far
    void* workspace;         // sample_workspace_bytes(...) bytes, 64-byte aligned
    int threads;             // at most so many
};

namespace cpu {
void prepare_head(HeadPreparation& args);
void multiply_logits(const LogitProduct& args);

int64_t solve_workspace_bytes(int64_t classes, int64_t dim, int threads);
void solve_classes(const ClassSolve& args);

int64_t sample_workspace_bytes(int64_t classes, int64_t dim, int64_t count, int threads);
void solve_samples(const SampleSolve& args);

int64_t gap_workspace_bytes(Scalar scalar, int64_t n, int64_t classes, int threads);
void update_gaps(GapUpdate& args);

int64_t trim_workspace_bytes(Scalar scalar, int64_t n, int64_t classes, int threads);
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
}  // namespace cuda

}  // namespace tacfast
