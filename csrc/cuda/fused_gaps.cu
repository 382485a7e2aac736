// The gap matrix from latents on the device: core/fused_tile.h on blocks of threads, the logits in shared memory alone.
//
// Whether this is faster than a library's matrix product followed by gap_matrix.cu depends on C, d and the device:
// benchmarks/gpu_ours.py times both, and until it has run on one the other is the default.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/fused_tile.h"
#include "cuda/gap_memory.h"
#include "cuda/launch.h"

namespace tacfast::cuda {
namespace {

using core::FusedFold, core::FusedShape, core::kFusedThreads, core::Pack;

constexpr int kBlocksPerSm = 2;              // one folds while the other multiplies
constexpr int kBlocks = 132 * kBlocksPerSm;  // fills an H100 once

// Through registers, which widen; from `aligned` rows by whole packs.
template <class S>
struct WideningCopy {
    bool aligned;

    struct alignas(4 * sizeof(S)) Narrow {
        S entry[4];
    };

    __device__ void operator()(Pack<float>* to, const S* from, int there) const {
        if (aligned && there >= 4) {
            const Narrow narrow = *reinterpret_cast<const Narrow*>(from);
            for (int e = 0; e < 4; ++e) to->entry[e] = float(narrow.entry[e]);
        } else {
            for (int e = 0; e < 4; ++e) to->entry[e] = e < there ? float(from[e]) : 0.0f;
        }
    }
};

// How both matrices get to shared memory.
template <class T, class Latents>
struct FusedCopy {
    Latents latents;
    AsyncCopy<T> weights;

    __device__ void wait() const { weights.wait(); }
};

template <class T, class S, class Copy>
__global__ void __launch_bounds__(kFusedThreads, kBlocksPerSm)
    fuse_gaps(const __grid_constant__ FusedFold<T, S> fold, const __grid_constant__ Copy copy, T* cells) {
    extern __shared__ __align__(16) unsigned char memory[];
    using Team = Block<kFusedThreads>;
    const Team block;
    const Cells<T> shared{cells};
    core::FusedBlock<T, S, 1, Team, Copy, Cells<T>>{block, fold, reinterpret_cast<Pack<T>*>(memory), copy, shared}.run(
        blockIdx.x, gridDim.x);
}

template <class T>
__global__ void __launch_bounds__(kFusedThreads)
    collect_gaps(FusedShape<T> shape, const T* TACFAST_RESTRICT cells, T* gaps) {
    const int at = static_cast<int>(blockIdx.x) * kFusedThreads + static_cast<int>(threadIdx.x);
    if (at >= shape.classes * shape.classes) return;
    gaps[at] = core::fused_gap(shape, cells, at / shape.classes, at % shape.classes, gaps[at]);
}

constexpr int kPlainBytes = 48 << 10;  // of shared memory that need no attribute

template <class T>
int bytes_of(int classes) {
    return FusedShape<T>::of(classes).memory_packs() * static_cast<int>(sizeof(Pack<T>));
}

template <class T>
int most_bytes() {
    static const int most = [] {
        int bytes = 0;
        for (int classes = 1; classes <= core::kFusedClasses<T>; ++classes)
            bytes = bytes_of<T>(classes) > bytes ? bytes_of<T>(classes) : bytes;
        return bytes;
    }();
    return most;
}

template <class T, class S, class Latents>
Fault launch(const FusedGaps& args, Queue queue, Latents latents) {
    using Copy = FusedCopy<T, Latents>;
    const auto shape = FusedShape<T>::of(static_cast<int>(args.classes));
    const FusedFold<T, S> fold{static_cast<const S*>(args.latents), args.n,
                               static_cast<int>(args.dim),          args.row_stride,
                               static_cast<const T*>(args.weights), args.weight_stride,
                               static_cast<const T*>(args.offset),  shape};
    const Copy copy{latents, {packs_are_aligned<T>(args.weights, args.weight_stride)}};
    const auto blocks = static_cast<unsigned>(fold.tiles() < kBlocks ? fold.tiles() : kBlocks);
    const int bytes = bytes_of<T>(shape.classes);
    T* const cells = static_cast<T*>(args.workspace);
    const DeviceGuard guard(queue.device);
    if (bytes > kPlainBytes)  // one value for all sizes, since another thread may be about to launch with another
        cudaFuncSetAttribute(fuse_gaps<T, S, Copy>, cudaFuncAttributeMaxDynamicSharedMemorySize, most_bytes<T>());
    cudaMemsetAsync(cells, 0xff, static_cast<size_t>(shape.cells()) * sizeof(T), stream_of(queue));
    fuse_gaps<T, S><<<blocks, kFusedThreads, static_cast<size_t>(bytes), stream_of(queue)>>>(fold, copy, cells);
    const Fault fault = check_launch("fuse_gaps");
    if (fault.kernel != nullptr) return fault;
    const auto rest = static_cast<unsigned>((args.classes * args.classes + kFusedThreads - 1) / kFusedThreads);
    collect_gaps<T><<<rest, kFusedThreads, 0, stream_of(queue)>>>(shape, cells, static_cast<T*>(args.gaps));
    return check_launch("collect_gaps");
}

}  // namespace

int64_t fused_workspace_bytes(Scalar scalar, int64_t classes) {
    const auto bytes = [classes](auto zero) -> int64_t {
        using T = decltype(zero);
        if (classes > core::kFusedClasses<T>) return 0;
        return FusedShape<T>::of(static_cast<int>(classes)).cells() * static_cast<int64_t>(sizeof(T));
    };
    return scalar == Scalar::f64 ? bytes(0.0) : bytes(0.0f);
}

Fault update_gaps_fused(const FusedGaps& args, Queue queue) {
    if (args.n == 0) return {};
    const auto aligned = [&args](int64_t bytes) {
        return reinterpret_cast<uintptr_t>(args.latents) % size_t(bytes) == 0 &&
               args.row_stride % Pack<float>::size == 0;
    };
    switch (args.latent_scalar) {
        case Scalar::f64:
            return launch<double, double>(args, queue, AsyncCopy<double>{aligned(sizeof(Pack<double>))});
        case Scalar::f16:
            return launch<float, __half>(args, queue, WideningCopy<__half>{aligned(8)});
        case Scalar::bf16:
            return launch<float, __nv_bfloat16>(args, queue, WideningCopy<__nv_bfloat16>{aligned(8)});
        default:
            return launch<float, float>(args, queue, AsyncCopy<float>{aligned(sizeof(Pack<float>))});
    }
}

}  // namespace tacfast::cuda
