// The class-wise QPs on the GPU: a warp per class where there are few, else a thread block.
//
// Every class gets a quick task; what those leave open, thorough ones solve in a second launch, which returns at once
// where nothing is left; and a third does so without the guess if there was one. In the dense regime two launches
// between the quick and the thorough tasks make that guess. Which regime it is only the device knows.
#include "core/class_solve.h"
#include "core/dense.h"
#include "cuda/launch.h"
#include "cuda/plan.h"
#include "cuda/team.h"

namespace tacfast::cuda {
namespace {

using namespace core;

constexpr int kBlockThreads = 128;
constexpr int64_t kWarpClasses = 64;    // up to so many a warp is the faster team
constexpr int64_t kQuickBlocks = 1056;  // 8 per multiprocessor of an H100

using Block = BlockTeam<kBlockThreads>;

template <class T, Effort effort, class Team>
__device__ __forceinline__ void run_classes(const Team& team, const ClassSolve& args, const Plan& plan) {
    extern __shared__ double shared_memory[];
    double* memory = static_cast<double*>(args.workspace) + blockIdx.x * plan.team_doubles();
    double* near = plan.shared ? shared_memory : memory + plan.far;
    ClassTask<T, Team, effort> task(team, args, near, memory);
    for (int64_t r = args.first + blockIdx.x; r < args.last; r += gridDim.x) {
        if (effort == Effort::thorough && !task.is_open(args.status[r])) continue;
        team.sync();
        task.run(r);
    }
}

// The second number of the bounds lets a thread have as many registers as there are.
template <class T, Effort effort>
__global__ void __launch_bounds__(kWarp, 8)
    solve_by_warps(const __grid_constant__ ClassSolve args, const __grid_constant__ Plan plan) {
    run_classes<T, effort>(WarpTeam{}, args, plan);
}

template <class T, Effort effort>
__global__ void __launch_bounds__(kBlockThreads, 2)
    solve_by_blocks(const __grid_constant__ ClassSolve args, const __grid_constant__ Plan plan) {
    __shared__ Block::Shared shared;
    run_classes<T, effort>(Block(shared), args, plan);
}

template <Effort effort>
Plan plan(int64_t classes, int64_t dim, int64_t count) {
    return Plan::of<ClassTask<double, WarpTeam, effort>>(classes, dim, count, kQuickBlocks, 1);
}

template <class T, Effort effort>
Fault launch(const ClassSolve& args, Queue queue) {
    const int64_t C = args.head.classes;
    const Plan p = plan<effort>(C, args.head.dim, args.last - args.first);
    const size_t shared = p.shared ? size_t(p.near) * sizeof(double) : 0;
    if (effort == Effort::quick && C <= kWarpClasses) {
        solve_by_warps<T, Effort::quick><<<unsigned(p.teams), kWarp, shared, stream_of(queue)>>>(args, p);
        return check_launch("solve_by_warps");
    }
    solve_by_blocks<T, effort><<<unsigned(p.teams), kBlockThreads, shared, stream_of(queue)>>>(args, p);
    return check_launch("solve_by_blocks");
}

// Of the memory of the tasks, whatever their effort.
int64_t task_bytes(int64_t classes, int64_t dim, int64_t count) {
    return at_least(plan<Effort::quick>(classes, dim, count).bytes(),
                    plan<Effort::thorough>(classes, dim, count).bytes());
}

constexpr int kFactorThreads = 512;  // of the one block that factorises
using Factoring = BlockTeam<kFactorThreads>;

template <class T>
__global__ void factorise_gram(const __grid_constant__ ClassSolve args, double* factor, double* guess) {
    __shared__ Factoring::Shared shared;
    const Factoring team(shared);
    DenseTask<T, Factoring>(team, args, factor, guess).prepare();
}

template <class T>
__global__ void guess_all_active(const __grid_constant__ ClassSolve args, double* factor, double* guess) {
    __shared__ Block::Shared shared;
    extern __shared__ double right_side[];
    const Block team(shared);
    DenseTask<T, Block> task(team, args, factor, guess);
    for (int64_t r = args.first + blockIdx.x; r < args.last; r += gridDim.x)
        if (ClassTask<T, Block, Effort::thorough>::is_open(args.status[r])) task.run(r, right_side);
}

// Multipliers for what the quick tasks left open, in the workspace behind the memory of the tasks.
template <class T>
Fault guess_if_dense(ClassSolve& args, Queue queue) {
    const int64_t C = args.head.classes;
    double* factor = static_cast<double*>(args.workspace) + task_bytes(C, args.head.dim, args.count) / sizeof(double);
    double* guess = factor + DenseTask<T, Factoring>::factor_size(C);
    factorise_gram<T><<<1, kFactorThreads, 0, stream_of(queue)>>>(args, factor, guess);
    const Fault fault = check_launch("factorise_gram");
    if (fault.kernel != nullptr) return fault;
    const int64_t blocks = at_most(args.last - args.first, kQuickBlocks);
    guess_all_active<T>
        <<<unsigned(blocks), kBlockThreads, size_t(C) * sizeof(double), stream_of(queue)>>>(args, factor, guess);
    args.guess = guess;
    return check_launch("guess_all_active");
}

template <class T>
Fault solve(ClassSolve args, Queue queue) {
    Fault fault = launch<T, Effort::quick>(args, queue);
    if (fault.kernel == nullptr && args.guess == nullptr && may_be_dense(args.head.classes, args.head.dim))
        fault = guess_if_dense<T>(args, queue);
    if (fault.kernel == nullptr) fault = launch<T, Effort::thorough>(args, queue);
    if (fault.kernel != nullptr || args.guess == nullptr) return fault;
    args.guess = nullptr;  // a bad one must not cost an answer
    return launch<T, Effort::thorough>(args, queue);
}

}  // namespace

int64_t solve_workspace_bytes(int64_t classes, int64_t dim, int64_t count) {
    const int64_t dense = DenseTask<double, Factoring>::factor_size(classes) + count * classes;
    return task_bytes(classes, dim, count) + (may_be_dense(classes, dim) ? dense * int64_t(sizeof(double)) : 0);
}

Fault solve_classes(const ClassSolve& args, Queue queue) {
    if (args.first >= args.last) return {};
    const DeviceGuard guard(queue.device);
    return args.scalar == Scalar::f64 ? solve<double>(args, queue) : solve<float>(args, queue);
}

}  // namespace tacfast::cuda
