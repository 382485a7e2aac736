// What the solves are asked: plain structs of pointers, sizes and strides, the same for every backend.
//
// The caller owns all memory, the workspaces included, where the backend can reach it. Matrices are row-major; a stride
// counts elements.
#pragma once

#include <cstdint>

namespace tacfast {

enum class Scalar : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };  // the last two of latents alone

// Rows of float64 matrices start on 64-byte boundaries.
constexpr int64_t padded_dim(int64_t d) { return (d + 7) / 8 * 8; }

// A linear head in float64, one block of memory, the zeros of the padding included:
//     (C, padded_dim(d))  W
//     (C, padded_dim(d))  W minus its mean row
//     (C, C)              the Gram matrix of that
//     (C,)                b, or zeros
//     (C,)                b minus its mean
//     (1,)                the largest |w_j|
struct PreparedHead {
    const double* memory;
    int64_t classes;    // C
    int64_t dim;        // d
    double same_share;  // rows of W closer than this share of the largest |w_j| are equal

    constexpr int64_t block() const { return classes * padded_dim(dim); }
    constexpr const double* rows() const { return memory; }
    constexpr const double* centred() const { return memory + block(); }
    constexpr const double* gram() const { return memory + 2 * block(); }
    constexpr const double* bias() const { return gram() + classes * classes; }
    constexpr const double* offset() const { return bias() + classes; }
    constexpr double longest() const { return offset()[classes]; }
};
constexpr int64_t prepared_size(int64_t classes, int64_t dim) {
    return 2 * classes * padded_dim(dim) + classes * classes + 2 * classes + 1;
}

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
    PreparedHead head;       //
    const void* gaps;        // R[k, j] at k * gap_stride_k + j * gap_stride_j
    int64_t gap_stride_k;    //
    int64_t gap_stride_j;    //
    const int64_t* targets;  // (K,) the classes to solve for
    int64_t count;           // K
    int64_t first, last;     // only the targets in [first, last) are solved for
    double margin;           //
    double tol;              // on the certificate
    int max_iter;            // adds and drops per class
    int max_active;          // size of the active set at which to give up as kCrowded
    const double* guess;     // (K, C) multipliers to try first and to take the support of, or null
    void* perturbations;     // (K, d), out
    void* norms;             // (K,), out
    int8_t* status;          // (K,), out
    int32_t* iterations;     // (K,), out: steps of the active-set method in the attempt that gave the results
    void* duals;             // (K, C), out
    double* certificate;     // (kCertificateFields, K), out
    void* workspace;         // solve_workspace_bytes(...) bytes, 64-byte aligned
    int threads;             // at most so many
};

// One QP for every sample and class.
struct SampleSolve {
    Scalar scalar;           // of logits, norms and perturbations
    PreparedHead head;       //
    const void* logits;      // (n, C), contiguous
    int64_t n;               //
    const int64_t* targets;  // (K,)
    int64_t count;           // K
    double margin;           //
    double tol;              //
    int max_iter;            //
    void* norms;             // (n, K), out
    int8_t* status;          // (n, K), out
    int32_t* iterations;     // (n, K), out
    void* perturbations;     // (n, K, d), out, or null
    double* certificate;     // (kCertificateFields, K), in and out: the worst so far
    void* workspace;         // sample_workspace_bytes(...) bytes, 64-byte aligned
    int threads;             // at most so many
};

}  // namespace tacfast
