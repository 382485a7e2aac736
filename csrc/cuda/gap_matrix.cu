// The gap matrix on the device: core/gap_tile.h on blocks of threads, in one launch and without a workspace.
#include <cuda_pipeline_primitives.h>

#include "core/gap_tile.h"
#include "cuda/launch.h"

namespace tacfast::cuda {
namespace {

using core::GapFold;
using core::kGapThreads;
using core::Pack;

constexpr int kBlocksPerSm = 3;              // what the registers allow
constexpr int kBlocks = 132 * kBlocksPerSm;  // fills an H100 once; all blocks work equally long

struct Block {
    __device__ int rank() const { return static_cast<int>(threadIdx.x); }
    __device__ int lanes() const { return kGapThreads; }
    __device__ void sync() const { __syncthreads(); }

    template <class F>
    __device__ void each(int n, const F& f) const {
        for (int i = rank(); i < n; i += kGapThreads) f(i);
    }
};

__device__ int bits(float x) { return __float_as_int(x); }
__device__ long long bits(double x) { return __double_as_longlong(x); }
__device__ unsigned without_sign(int x) { return static_cast<unsigned>(x); }
__device__ unsigned long long without_sign(long long x) { return static_cast<unsigned long long>(x); }

template <class T>
struct Cells {
    using Bits = decltype(bits(T()));
    T* gaps;

    __device__ T load(int64_t at) const { return __ldcg(gaps + at); }
    __device__ void raise_signed(int64_t at, T value) const {
        atomicMax(reinterpret_cast<Bits*>(gaps + at), bits(value));
    }
    __device__ void lower_unsigned(int64_t at, T value) const {
        atomicMin(reinterpret_cast<decltype(without_sign(Bits()))*>(gaps + at), without_sign(bits(value)));
    }
};

// Entry by entry, through registers.
template <class T>
struct PlainCopy {
    __device__ void operator()(Pack<T>* to, const T* from, int there) const {
        for (int e = 0; e < Pack<T>::size; ++e) to->entry[e] = e < there ? from[e] : T(0);
    }
    __device__ void wait() const {}
};

// Past the registers, while the stage before is folded. Only what is past the last class is written at once.
template <class T>
struct AsyncCopy {
    bool aligned;  // whether a pack is, in the logits

    __device__ void operator()(Pack<T>* to, const T* from, int there) const {
        if (aligned && there >= Pack<T>::size) {
            __pipeline_memcpy_async(to, from, sizeof *to);
            return;
        }
        for (int e = 0; e < Pack<T>::size; ++e) {
            if (e < there) {
                __pipeline_memcpy_async(to->entry + e, from + e, sizeof(T));
            } else {
                to->entry[e] = T(0);
            }
        }
    }
    __device__ void wait() const {
        __pipeline_commit();
        __pipeline_wait_prior(0);
    }
};

template <class T, class Copy>
__global__ void __launch_bounds__(kGapThreads, kBlocksPerSm) fold_gaps(GapFold<T> fold, Copy copy, T* gaps) {
    __shared__ core::GapMemory<T> memory;
    const Block block;
    const Cells<T> cells{gaps};
    const int64_t stages = fold.stages(), blocks = gridDim.x;
    core::GapBlock<T, 1, Block, Copy, Cells<T>>{block, fold, memory, copy, cells}.run(
        stages * blockIdx.x / blocks, stages * (blockIdx.x + 1) / blocks);
}

template <class T>
bool packs_are_aligned(const GapUpdate& args) {
    return reinterpret_cast<uintptr_t>(args.logits) % sizeof(Pack<T>) == 0 && args.row_stride % Pack<T>::size == 0;
}

template <class T, class Copy>
Fault launch(const GapUpdate& args, Queue queue, Copy copy) {
    if (args.n == 0) return {};
    const GapFold<T> fold{static_cast<const T*>(args.logits), args.n, args.row_stride, static_cast<int>(args.classes)};
    const int64_t stages = fold.stages();
    const auto blocks = static_cast<unsigned>(stages < kBlocks ? stages : kBlocks);
    const DeviceGuard guard(queue.device);
    fold_gaps<T><<<blocks, kGapThreads, 0, stream_of(queue)>>>(fold, copy, static_cast<T*>(args.gaps));
    return check_launch("fold_gaps");
}

}  // namespace

int64_t gap_workspace_bytes(Scalar, int64_t, int64_t) { return 0; }

Fault update_gaps(const GapUpdate& args, Queue queue) {
    if (args.scalar == Scalar::f32) return launch<float>(args, queue, AsyncCopy<float>{packs_are_aligned<float>(args)});
    return launch<double>(args, queue, AsyncCopy<double>{packs_are_aligned<double>(args)});
}

Fault update_gaps_plain(const GapUpdate& args, Queue queue) {
    if (args.scalar == Scalar::f32) return launch<float>(args, queue, PlainCopy<float>{});
    return launch<double>(args, queue, PlainCopy<double>{});
}

}  // namespace tacfast::cuda
