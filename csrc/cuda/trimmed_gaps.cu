// Trimmed gaps: the rows are sorted by class, and a block selects for each tile of pairs (core/trimmed_gaps.h).
#include "core/trimmed_gaps.h"
#include "cuda/launch.h"
#include "cuda/team.h"

namespace tacfast::cuda {
namespace {

using core::RadixTile;
using core::TrimTask;

constexpr int kThreads = 512;
constexpr int64_t kRowBlocks = 1024;  // at most so many go over all rows

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

// As many lanes as a row has logits, or the next power of two, or a warp.
int lanes_of_row(int64_t classes) {
    int lanes = 2;
    while (lanes < classes && lanes < kWarp) lanes *= 2;
    return lanes;
}

template <class T>
__global__ void __launch_bounds__(kThreads) label_rows(TrimTask<T> task, int width) {
    const RowTeam team{width};
    const int64_t step = int64_t(gridDim.x) * (kThreads / width);
    const int64_t mine = int64_t(blockIdx.x) * (kThreads / width) + threadIdx.x / width;
    const int64_t warps_first = mine - threadIdx.x % kWarp / width;
    for (int64_t at = 0; warps_first + at < task.n; at += step) {  // no lane leaves its warp
        const int64_t i = mine + at < task.n ? mine + at : task.n - 1;
        const int j = core::predicted_class(team, reinterpret_cast<const T*>(task.rows[i]), task.classes);
        if (mine + at < task.n && team.rank() == 0) core::enter_label(task, i, j);
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) begin_classes(TrimTask<T> task) {
    __shared__ uint32_t sums[core::kScanChunks];
    __shared__ Block::Shared shared;
    core::begin_classes(Block(shared), task, sums);
}

template <class T>
__global__ void __launch_bounds__(kThreads) sort_rows(TrimTask<T> task) {
    const int64_t step = int64_t(gridDim.x) * kThreads;
    for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < task.n; i += step) core::sort_row(task, i);
}

template <class T>
__global__ void __launch_bounds__(kThreads) trim_tiles(TrimTask<T> task) {
    __shared__ RadixTile<T> tile;
    __shared__ Block::Shared shared;
    core::trim_tile(Block(shared), task, int64_t(blockIdx.x), tile);
}

// The bytes of an array in the workspace, and the array itself, cut off the front.
template <class A>
int64_t padded(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(A)) + 63) / 64 * 64;
}
template <class A>
A* take(char*& memory, int64_t count) {
    A* array = reinterpret_cast<A*>(memory);
    memory += padded<A>(count);
    return array;
}

unsigned blocks_for(int64_t n, int64_t rows_per_block) {
    const int64_t blocks = (n + rows_per_block - 1) / rows_per_block;
    return static_cast<unsigned>(blocks < kRowBlocks ? blocks : kRowBlocks);
}

template <class T>
Fault trim(const TrimmedGaps& args, cudaStream_t stream) {
    char* memory = static_cast<char*>(args.workspace);
    auto* label = take<uint32_t>(memory, args.n);
    auto* counts = take<uint32_t>(memory, args.classes);
    auto* ends = take<uint32_t>(memory, args.classes);
    auto* sorted = take<int64_t>(memory, args.n);
    T* gaps = static_cast<T*>(args.gaps);
    const TrimTask<T> task{args.rows, args.n, args.classes, args.trim, label, counts, ends, sorted, gaps};
    cudaMemsetAsync(counts, 0, static_cast<size_t>(padded<uint32_t>(args.classes)), stream);
    Fault fault = check_launch("the memset of trimmed_gaps");
    if (fault.kernel != nullptr) return fault;
    const int width = lanes_of_row(args.classes);
    label_rows<T><<<blocks_for(args.n, kThreads / width), kThreads, 0, stream>>>(task, width);
    fault = check_launch("label_rows");
    if (fault.kernel != nullptr) return fault;
    begin_classes<T><<<1, kThreads, 0, stream>>>(task);
    fault = check_launch("begin_classes");
    if (fault.kernel != nullptr) return fault;
    sort_rows<T><<<blocks_for(args.n, kThreads), kThreads, 0, stream>>>(task);
    fault = check_launch("sort_rows");
    if (fault.kernel != nullptr) return fault;
    const int64_t tiles = core::tile_count(args.classes, core::tile_width(args.classes));
    trim_tiles<T><<<static_cast<unsigned>(tiles), kThreads, 0, stream>>>(task);
    return check_launch("trim_tiles");
}

}  // namespace

// 12 bytes per row: some 12 MB for a million rows.
int64_t trim_workspace_bytes(Scalar, int64_t n, int64_t classes) {
    return padded<uint32_t>(n) + 2 * padded<uint32_t>(classes) + padded<int64_t>(n);
}

Fault trimmed_gaps(const TrimmedGaps& args, Queue queue) {
    if (args.trim == 0 || args.n == 0) return {};
    const DeviceGuard guard(queue.device);
    return args.scalar == Scalar::f32 ? trim<float>(args, stream_of(queue)) : trim<double>(args, stream_of(queue));
}

}  // namespace tacfast::cuda
