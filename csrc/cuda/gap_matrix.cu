// The gap matrix on the device: core/gap_tile.h on blocks of threads, in one launch and without a workspace.
#include "cuda/gap_memory.h"
#include "cuda/launch.h"

namespace tacfast::cuda {
namespace {

using core::GapFold;
using core::kGapThreads;

constexpr int kBlocksPerSm = 3;              // what the registers allow
constexpr int kBlocks = 132 * kBlocksPerSm;  // fills an H100 once; all blocks work equally long

template <class T, class Copy>
__global__ void __launch_bounds__(kGapThreads, kBlocksPerSm) fold_gaps(GapFold<T> fold, Copy copy, T* gaps) {
    __shared__ core::GapMemory<T> memory;
    using Team = Block<kGapThreads>;
    const Team block;
    const Cells<T> cells{gaps};
    const int64_t stages = fold.stages(), blocks = gridDim.x;
    core::GapBlock<T, 1, Team, Copy, Cells<T>>{block, fold, memory, copy, cells}.run(
        stages * blockIdx.x / blocks, stages * (blockIdx.x + 1) / blocks);
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
    if (args.scalar == Scalar::f32)
        return launch<float>(args, queue, AsyncCopy<float>{packs_are_aligned<float>(args.logits, args.row_stride)});
    return launch<double>(args, queue, AsyncCopy<double>{packs_are_aligned<double>(args.logits, args.row_stride)});
}

Fault update_gaps_plain(const GapUpdate& args, Queue queue) {
    if (args.scalar == Scalar::f32) return launch<float>(args, queue, PlainCopy<float>{});
    return launch<double>(args, queue, PlainCopy<double>{});
}

}  // namespace tacfast::cuda
