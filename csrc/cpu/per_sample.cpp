// One QP per sample and class on the CPU: a task is many samples of one class.
#include "core/sample_solve.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace tacfast::cpu::TACFAST_ISA {
namespace {

using namespace core;

constexpr SerialTeam team;
constexpr int64_t kBlock = 1024;  // samples of one class in one task

// Doubles of one worker: its summary of certificates, and a task's memory.
int64_t summary_size(int64_t count) { return padded_dim(kCertificateFields * count); }
int64_t worker_size(int64_t classes, int64_t dim, int64_t count) {
    using Task = SampleTask<double, SerialTeam, Effort::thorough>;
    return summary_size(count) + Task::near_size(classes, dim) + Task::far_size(classes, dim);
}

// Folds a certificate into the summary of its class: the worst residuals, the widest bounds.
void fold(double* summary, int64_t count, const Certificate& one) {
    const double values[4] = {one.primal, one.dual, one.stationarity, one.gap};
    for (int f = 0; f < 4; ++f)
        if (!(values[f] <= summary[f * count])) summary[f * count] = values[f];
    if (one.lower < summary[4 * count]) summary[4 * count] = one.lower;
    if (one.upper > summary[5 * count]) summary[5 * count] = one.upper;
}

void start_summary(double* summary, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
        for (int f = 0; f < 4; ++f) summary[f * count + r] = 0;
        summary[4 * count + r] = INFINITY;
        summary[5 * count + r] = 0;
    }
}

template <class T>
void solve_typed(const SampleSolve& args) {
    const int64_t n = args.n, K = args.count, blocks = (n + kBlock - 1) / kBlock;
    const int64_t C = args.head.classes, d = args.head.dim;
    const int threads = n * K * C < 100'000 ? 1 : args.threads;
    auto summary = [&](int worker) { return static_cast<double*>(args.workspace) + worker * worker_size(C, d, K); };
    for (int worker = 0; worker < threads; ++worker) start_summary(summary(worker), K);
    auto block = [&](int worker, int64_t t) {
        using Task = SampleTask<T, SerialTeam, Effort::thorough>;
        double* memory = summary(worker) + summary_size(K);
        Task task(team, args, memory, memory + Task::near_size(C, d));
        task.choose(t / blocks);
        const int64_t first = t % blocks * kBlock;
        for (int64_t i = first; i < first + kBlock && i < n; ++i) {
            task.run(i);
            fold(summary(worker) + task.row, K, task.result.certificate);
        }
    };
    parallel_for(threads, blocks * K, block);
    for (int worker = 0; worker < threads; ++worker) {
        const double* one = summary(worker);
        for (int64_t r = 0; r < K; ++r)
            fold(args.certificate + r, K,
                 {one[r], one[K + r], one[2 * K + r], one[3 * K + r], one[4 * K + r], one[5 * K + r]});
    }
}

}  // namespace

int64_t sample_workspace_bytes(int64_t classes, int64_t dim, int64_t count, int threads) {
    return threads * worker_size(classes, dim, count) * int64_t(sizeof(double));
}

void solve_samples(const SampleSolve& args) {
    args.scalar == Scalar::f64 ? solve_typed<double>(args) : solve_typed<float>(args);
}

}  // namespace tacfast::cpu::TACFAST_ISA
