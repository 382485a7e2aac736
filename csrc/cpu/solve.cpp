// The class-wise QPs on the CPU, a few classes per task.
#include "core/class_solve.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace tacfast::cpu::TACFAST_ISA {
namespace {

using namespace core;

constexpr SerialTeam team;
constexpr int64_t kGroup = 8;  // classes that are worth a thread, from about 50 microseconds of work

int64_t worker_size(int64_t classes, int64_t dim) {
    using Task = ClassTask<double, SerialTeam, Effort::thorough>;
    return Task::near_size(classes, dim) + Task::far_size(classes, dim);
}

// again: only what a solve before left open.
template <class T>
void solve_typed(const ClassSolve& args, bool again = false) {
    using Task = ClassTask<T, SerialTeam, Effort::thorough>;
    const int64_t C = args.head.classes, d = args.head.dim;
    const int threads = (args.last - args.first) * C * d < 400'000 ? 1 : args.threads;
    auto group = [&](int worker, int64_t g) {
        double* memory = static_cast<double*>(args.workspace) + worker * worker_size(C, d);
        Task task(team, args, memory, memory + Task::near_size(C, d));
        const int64_t begin = args.first + g * kGroup;
        for (int64_t r = begin; r < begin + kGroup && r < args.last; ++r)
            if (!again || Task::is_open(args.status[r])) task.run(r);
    };
    parallel_for(threads, (args.last - args.first + kGroup - 1) / kGroup, group);
    if (args.guess == nullptr) return;
    ClassSolve without = args;
    without.guess = nullptr;  // a bad one must not cost an answer
    solve_typed<T>(without, true);
}

}  // namespace

int64_t solve_workspace_bytes(int64_t classes, int64_t dim, int threads) {
    return threads * worker_size(classes, dim) * int64_t(sizeof(double));
}

void solve_classes(const ClassSolve& args) {
    args.scalar == Scalar::f64 ? solve_typed<double>(args) : solve_typed<float>(args);
}

}  // namespace tacfast::cpu::TACFAST_ISA
