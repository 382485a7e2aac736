// Trimmed gaps: radix selection, a block per tile of pairs (core/radix_select.h).
//
// With many tiles a block takes one through all passes, and what it counts never leaves its shared memory. Few classes
// make few tiles: there every pass is a launch that cuts each tile into slices of the rows.
#include "core/radix_select.h"
#include "cuda/launch.h"
#include "cuda/team.h"

namespace tacfast::cuda {
namespace {

using core::RadixTile;
using core::TrimTask;

constexpr int kThreads = 512;
constexpr int64_t kSlicedTiles = 128;  // beyond, the tiles alone fill a device
constexpr int64_t kBlocks = 512;       // that fill it
constexpr int64_t kSliceRows = 1024;   // that are worth a block
constexpr int kNearClasses = 1024;     // so many are counted in shared memory first
constexpr int kLabelBlocks = 1024;

using Block = BlockTeam<kThreads>;

// A part of a warp, a power of two of lanes side by side. Every lane of the warp must reach largest().
struct RowTeam : Strided<RowTeam> {
    int width;

    __device__ __forceinline__ explicit RowTeam(int width_) : width(width_) {}
    __device__ __forceinline__ int rank() const { return static_cast<int>(threadIdx.x) % width; }
    __device__ __forceinline__ int lanes() const { return width; }

    template <class F>
    __device__ __forceinline__ Best largest(int n, const F& f) const {
        Best best = this->partial_best(n, f);
        for (int step = width / 2; step > 0; step /= 2) {
            const double value = __shfl_xor_sync(kAllLanes, best.value, step);
            const int index = __shfl_xor_sync(kAllLanes, best.index, step);
            if (best.loses_to(value, index)) best = {value, index};
        }
        return best;
    }
};

// Adds to predicted[j] how many rows are of class j.
template <class T>
__global__ void __launch_bounds__(kThreads)
    count_classes(const int64_t* rows, int64_t n, int64_t classes, int width, uint32_t* predicted) {
    __shared__ uint32_t near[kNearClasses];
    __shared__ Block::Shared shared;
    const bool is_near = classes <= kNearClasses;
    const Block block(shared);
    block.each(kNearClasses, [&](int j) { near[j] = 0; });
    block.sync();
    uint32_t* counts = is_near ? near : predicted;
    const RowTeam team{width};
    const int64_t step = int64_t(gridDim.x) * (kThreads / width);
    const int64_t mine = int64_t(blockIdx.x) * (kThreads / width) + threadIdx.x / width;
    const int64_t warps_first = mine - threadIdx.x % kWarp / width;
    for (int64_t at = 0; warps_first + at < n; at += step) {  // no lane leaves its warp
        const int64_t i = mine + at < n ? mine + at : n - 1;
        const int j = core::predicted_class(team, reinterpret_cast<const T*>(rows[i]), classes);
        if (mine + at < n && threadIdx.x % width == 0) core::count_up(counts + j, 1);
    }
    if (!is_near) return;
    block.sync();
    block.each(static_cast<int>(classes), [&](int j) {
        if (near[j] != 0) core::count_up(predicted + j, near[j]);
    });
}

template <class T>
__global__ void __launch_bounds__(kThreads) trim_tiles(TrimTask<T> task) {
    __shared__ RadixTile<T> tile;
    __shared__ Block::Shared shared;
    core::trim_tile(Block(shared), task, int64_t(blockIdx.x), tile);
}

// blockIdx: tile, slice. `records` are those of this pass, one per tile; those of the pass before lie in front.
template <class T>
__global__ void __launch_bounds__(kThreads)
    count_slices(TrimTask<T> task, int pass, int64_t slice_rows, RadixTile<T>* records) {
    __shared__ RadixTile<T> tile;
    __shared__ Block::Shared shared;
    const int64_t begin = blockIdx.y * slice_rows, end = begin + slice_rows < task.n ? begin + slice_rows : task.n;
    RadixTile<T>* record = records + blockIdx.x;
    const RadixTile<T>* before = pass == 0 ? nullptr : record - gridDim.x;
    core::count_slice(Block(shared), task, int64_t(blockIdx.x), pass, begin, end, before, *record, tile);
}

// `records` are those of the last pass.
template <class T>
__global__ void __launch_bounds__(kThreads) finish_slices(TrimTask<T> task, const RadixTile<T>* records) {
    __shared__ RadixTile<T> tile;
    __shared__ Block::Shared shared;
    core::finish_slices(Block(shared), task, int64_t(blockIdx.x), records + blockIdx.x, tile);
}

int64_t slice_count(int64_t n, int64_t tiles) {
    const int64_t blocks = kBlocks / tiles, worth = n / kSliceRows;
    return tiles > kSlicedTiles || worth < 2 ? 1 : worth < blocks ? worth : blocks;
}

int64_t counter_bytes(int64_t classes) { return (classes * static_cast<int64_t>(sizeof(uint32_t)) + 63) / 64 * 64; }

template <class T>
int64_t workspace_bytes(int64_t n, int64_t classes) {
    const int64_t tiles = core::tile_count(classes), records = slice_count(n, tiles) > 1 ? tiles * core::kPasses<T> : 0;
    return counter_bytes(classes) + records * static_cast<int64_t>(sizeof(RadixTile<T>));
}

template <class T>
Fault trim_by_slices(const TrimTask<T>& task, int64_t slices, RadixTile<T>* records, cudaStream_t stream) {
    const auto tiles = static_cast<unsigned>(core::tile_count(task.classes));
    const int64_t slice_rows = (task.n + slices - 1) / slices;
    const dim3 grid(tiles, static_cast<unsigned>((task.n + slice_rows - 1) / slice_rows));
    for (int pass = 0; pass < core::kPasses<T>; ++pass) {
        count_slices<T><<<grid, kThreads, 0, stream>>>(task, pass, slice_rows, records + int64_t(pass) * tiles);
        const Fault fault = check_launch("count_slices");
        if (fault.kernel != nullptr) return fault;
    }
    finish_slices<T><<<tiles, kThreads, 0, stream>>>(task, records + int64_t(core::kPasses<T> - 1) * tiles);
    return check_launch("finish_slices");
}

template <class T>
Fault trim(const TrimmedGaps& args, cudaStream_t stream) {
    const int64_t n = args.n, classes = args.classes, tiles = core::tile_count(classes);
    auto* predicted = static_cast<uint32_t*>(args.workspace);
    auto* records = reinterpret_cast<RadixTile<T>*>(static_cast<char*>(args.workspace) + counter_bytes(classes));
    cudaMemsetAsync(predicted, 0, static_cast<size_t>(workspace_bytes<T>(n, classes)), stream);
    Fault fault = check_launch("the memset of trimmed_gaps");
    if (fault.kernel != nullptr) return fault;
    const int width = core::tile_width(classes);
    const int64_t label_blocks = (n + kThreads / width - 1) / (kThreads / width);
    count_classes<T>
        <<<static_cast<unsigned>(label_blocks < kLabelBlocks ? label_blocks : kLabelBlocks), kThreads, 0, stream>>>(
            args.rows, n, classes, width, predicted);
    fault = check_launch("count_classes");
    if (fault.kernel != nullptr) return fault;
    const TrimTask<T> task{args.rows, n, classes, args.trim, predicted, static_cast<T*>(args.gaps)};
    const int64_t slices = slice_count(n, tiles);
    if (slices > 1) return trim_by_slices<T>(task, slices, records, stream);
    trim_tiles<T><<<static_cast<unsigned>(tiles), kThreads, 0, stream>>>(task);
    return check_launch("trim_tiles");
}

}  // namespace

// Some 36 MB at most: the records of kSlicedTiles tiles.
int64_t trim_workspace_bytes(Scalar scalar, int64_t n, int64_t classes) {
    return scalar == Scalar::f32 ? workspace_bytes<float>(n, classes) : workspace_bytes<double>(n, classes);
}

Fault trimmed_gaps(const TrimmedGaps& args, Queue queue) {
    if (args.trim == 0 || args.n == 0) return {};
    const DeviceGuard guard(queue.device);
    return args.scalar == Scalar::f32 ? trim<float>(args, stream_of(queue)) : trim<double>(args, stream_of(queue));
}

}  // namespace tacfast::cuda
