// One QP per sample and class on the GPU: a warp takes many samples of one class, one after the other.
//
// As in solve.cu, thorough tasks solve in a second launch what the quick ones leave open.
#include "core/sample_solve.h"
#include "cuda/launch.h"
#include "cuda/plan.h"
#include "cuda/team.h"

namespace tacfast::cuda {
namespace {

using namespace core;

constexpr int kWarps = 4;                // of a block
constexpr int64_t kQuickWarps = 8448;    // 64 per multiprocessor of an H100
constexpr int64_t kSamplesPerTask = 64;  // of one class, which is screened once for them

// The bits of numbers >= 0 have their order, and NaN comes last, so that integers do for the worst of doubles.
__device__ __forceinline__ void raise(double* at, double value) {
    atomicMax(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(__double_as_longlong(value)));
}
__device__ __forceinline__ void lower(double* at, double value) {
    atomicMin(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(__double_as_longlong(value)));
}

// The worst certificate of the samples of one task; it goes to the summary of its class in one go.
struct Worst {
    double primal = 0, gap = 0, lower = INFINITY, upper = 0;

    // The dual residual and stationarity are 0 by definition where there are numbers at all.
    __device__ __forceinline__ void fold(const Certificate& one) {
        primal = one.primal <= primal ? primal : one.primal;
        gap = one.gap <= gap ? gap : one.gap;
        lower = one.lower < lower ? one.lower : lower;
        upper = one.upper > upper ? one.upper : upper;
    }
    __device__ __forceinline__ void store(double* summary, int64_t count) const {
        raise(summary, primal);
        if (primal != primal) raise(summary + count, primal);
        if (primal != primal) raise(summary + 2 * count, primal);
        raise(summary + 3 * count, gap);
        cuda::lower(summary + 4 * count, lower);
        raise(summary + 5 * count, upper);
    }
};

template <class T, Effort effort>
__global__ void __launch_bounds__(kWarps* kWarp, 2)
    solve_by_sample(const __grid_constant__ SampleSolve args, const __grid_constant__ Plan plan) {
    extern __shared__ double shared_memory[];
    using Task = SampleTask<T, WarpTeam, effort>;
    const WarpTeam team;
    const int64_t in_block = threadIdx.x / kWarp, number = blockIdx.x * int64_t(kWarps) + in_block;
    if (number >= plan.teams) return;
    double* memory = static_cast<double*>(args.workspace) + number * plan.team_doubles();
    Task task(team, args, plan.shared ? shared_memory + in_block * plan.near : memory + plan.far, memory);
    const int64_t blocks = (args.n + kSamplesPerTask - 1) / kSamplesPerTask;
    for (int64_t t = number; t < blocks * args.count; t += plan.teams) {
        const int64_t r = t / blocks, first = t % blocks * kSamplesPerTask;
        bool chosen = false;
        Worst worst;
        for (int64_t i = first; i < first + kSamplesPerTask && i < args.n; ++i) {
            if (effort == Effort::thorough && !Task::is_open(args.status[i * args.count + r])) continue;
            team.sync();
            if (!chosen) task.choose(r);
            chosen = true;
            task.run(i);
            if (effort == Effort::thorough || !Task::is_open(task.result.status)) worst.fold(task.result.certificate);
        }
        if (chosen && team.rank() == 0) worst.store(args.certificate + r, args.count);
    }
}

template <Effort effort>
Plan plan(int64_t classes, int64_t dim, int64_t n, int64_t count) {
    const int64_t tasks = (n + kSamplesPerTask - 1) / kSamplesPerTask * count;
    return Plan::of<SampleTask<double, WarpTeam, effort>>(classes, dim, tasks, kQuickWarps, kWarps);
}

template <class T, Effort effort>
Fault launch(const SampleSolve& args, Queue queue) {
    const Plan p = plan<effort>(args.head.classes, args.head.dim, args.n, args.count);
    const size_t shared = p.shared ? size_t(kWarps * p.near) * sizeof(double) : 0;
    const unsigned blocks = unsigned((p.teams + kWarps - 1) / kWarps);
    solve_by_sample<T, effort><<<blocks, kWarps * kWarp, shared, stream_of(queue)>>>(args, p);
    return check_launch("solve_by_sample");
}

template <class T>
Fault solve(const SampleSolve& args, Queue queue) {
    const Fault fault = launch<T, Effort::quick>(args, queue);
    return fault.kernel != nullptr ? fault : launch<T, Effort::thorough>(args, queue);
}

}  // namespace

int64_t sample_workspace_bytes(int64_t classes, int64_t dim, int64_t n, int64_t count) {
    return at_least(plan<Effort::quick>(classes, dim, n, count).bytes(),
                    plan<Effort::thorough>(classes, dim, n, count).bytes());
}

Fault solve_samples(const SampleSolve& args, Queue queue) {
    if (args.n == 0 || args.count == 0) return {};
    const DeviceGuard guard(queue.device);
    return args.scalar == Scalar::f64 ? solve<double>(args, queue) : solve<float>(args, queue);
}

}  // namespace tacfast::cuda
