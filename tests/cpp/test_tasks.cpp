// What a GPU runs per class and per sample, by emulated thread blocks: quick tasks, then thorough ones for what they
// left open. Compared with the CPU backend, by status, norm and certificate.
#include "backend_case.h"
#include "core/class_solve.h"
#include "core/dense.h"
#include "core/sample_solve.h"
#include "emulated_team.h"

using namespace tacfast;
using namespace tacfast::test;
using core::ClassTask;
using core::DenseTask;
using core::Effort;
using core::SampleTask;

namespace {

constexpr int kLanes[] = {1, 5};

template <class T>
std::vector<T> normals(int64_t count, unsigned seed) {
    Random random(seed);
    std::vector<T> values;
    for (int64_t i = 0; i < count; ++i) values.push_back(T(random.normal()));
    return values;
}

// The arguments of a call and its outputs, which start as garbage.
template <class T>
struct ClassCall {
    std::vector<T> perturbations, norms, duals;
    std::vector<int8_t> status;
    std::vector<int32_t> iterations;
    std::vector<double> certificate;
    ClassSolve args{};

    ClassCall(const PreparedHead& head, const std::vector<T>& gaps, const std::vector<int64_t>& targets,
              const double* guess)
        : perturbations(targets.size() * head.dim, T(7)),
          norms(targets.size(), T(7)),
          duals(targets.size() * head.classes, T(7)),
          status(targets.size(), int8_t(99)),
          iterations(targets.size(), -1),
          certificate(targets.size() * kCertificateFields, 7.0) {
        const int64_t K = int64_t(targets.size());
        args = {scalar_of<T>,
                head,
                gaps.data(),
                1,
                head.classes,
                targets.data(),
                K,
                0,
                K,
                0.0,
                sizeof(T) == 4 ? 1e-6 : 1e-10,
                1000,
                1000,
                guess,
                perturbations.data(),
                norms.data(),
                status.data(),
                iterations.data(),
                duals.data(),
                certificate.data(),
                nullptr,
                1};
    }

    void solve_on_cpu() {
        const Aligned workspace(cpu::solve_workspace_bytes(args.head.classes, args.head.dim, 1));
        args.workspace = workspace.get();
        cpu::solve_classes(args);
    }
};

// Runs every task of one effort, each in memory of exactly its size.
template <class T, Effort effort>
void run_classes(ClassSolve& args, int lanes) {
    using Task = ClassTask<T, BlockTeam, effort>;
    const Aligned near(Task::near_size(args.head.classes, args.head.dim) * 8);
    const Aligned far(Task::far_size(args.head.classes, args.head.dim) * 8);
    for (int64_t r = 0; r < args.count; ++r) {
        if (effort == Effort::thorough && !Task::is_open(args.status[r])) continue;
        run_block(lanes, [&](const BlockTeam& team) { Task(team, args, near.doubles(), far.doubles()).run(r); });
    }
}

// The guess for what the quick tasks left open, in memory of exactly its size; whether the regime was dense.
template <class T>
bool guess_if_dense(ClassSolve& args, int lanes, std::vector<double>& guess) {
    const int64_t C = args.head.classes;
    const Aligned factor(DenseTask<T, BlockTeam>::factor_size(C) * 8), scratch(C * 8);
    guess.assign(size_t(args.count * C), std::numeric_limits<double>::quiet_NaN());
    run_block(lanes, [&](const BlockTeam& team) {
        DenseTask<T, BlockTeam>(team, args, factor.doubles(), guess.data()).prepare();
    });
    for (int64_t r = 0; r < args.count; ++r)
        if (ClassTask<T, BlockTeam, Effort::thorough>::is_open(args.status[r]))
            run_block(lanes, [&](const BlockTeam& team) {
                DenseTask<T, BlockTeam>(team, args, factor.doubles(), guess.data()).run(r, scratch.doubles());
            });
    args.guess = guess.data();
    return factor.doubles()[C * C + C] > 0;
}

template <class T>
void compare(const ClassCall<T>& got, const ClassCall<T>& want, const char* what) {
    const int64_t K = want.args.count;
    for (int64_t r = 0; r < K; ++r) {
        const double norm = double(want.norms[r]), tol = sizeof(T) == 4 ? 1e-5 : 1e-9;
        check(got.status[r] == want.status[r], "%s: status %d, not %d (C=%d, class %d)", what, got.status[r],
              want.status[r], int(want.args.head.classes), int(r));
        check(double(got.norms[r]) == norm || (std::isnan(norm) && std::isnan(double(got.norms[r]))) ||
                  std::fabs(double(got.norms[r]) - norm) <= tol * norm,
              "%s: norm %g, not %g", what, double(got.norms[r]), norm);
        for (int f = 0; f < 4 && want.status[r] == kOptimal; ++f)
            check(got.certificate[f * K + r] <= want.args.tol, "%s: residual %d is %g", what, f,
                  got.certificate[f * K + r]);
    }
}

template <class T>
void test_classes(const PreparedHead& head, const std::vector<T>& gaps, const std::vector<int64_t>& targets,
                  const char* what, const double* guess = nullptr) {
    ClassCall<T> want(head, gaps, targets, guess);
    want.solve_on_cpu();
    for (int lanes : kLanes) {
        ClassCall<T> got(head, gaps, targets, guess);
        run_classes<T, Effort::quick>(got.args, lanes);
        run_classes<T, Effort::thorough>(got.args, lanes);
        compare(got, want, what);
    }
}

template <class T, Effort effort>
void run_samples(SampleSolve& args, int lanes) {
    using Task = SampleTask<T, BlockTeam, effort>;
    const Aligned near(Task::near_size(args.head.classes, args.head.dim) * 8);
    const Aligned far(Task::far_size(args.head.classes, args.head.dim) * 8);
    run_block(lanes, [&](const BlockTeam& team) {
        Task task(team, args, near.doubles(), far.doubles());
        for (int64_t r = 0; r < args.count; ++r) {
            task.choose(r);
            for (int64_t i = 0; i < args.n; ++i) {
                const bool open = effort == Effort::quick || Task::is_open(args.status[i * args.count + r]);
                team.sync();
                if (open) task.run(i);
                team.sync();
            }
        }
    });
}

template <class T>
void test_samples(const PreparedHead& head, const std::vector<T>& logits, int64_t n,
                  const std::vector<int64_t>& targets) {
    const int64_t C = head.classes, d = head.dim, K = int64_t(targets.size());
    std::vector<double> certificate(size_t(K * kCertificateFields), 0.0);
    std::vector<T> norms(size_t(n * K)), points(size_t(n * K * d)), want_norms(size_t(n * K)), want_points(points);
    std::vector<int8_t> status(size_t(n * K)), want_status(size_t(n * K));
    std::vector<int32_t> iterations(size_t(n * K)), want_iterations(size_t(n * K));
    const Aligned workspace(cpu::sample_workspace_bytes(C, d, K, 1));
    SampleSolve args{scalar_of<T>,
                     head,
                     logits.data(),
                     n,
                     targets.data(),
                     K,
                     0.0,
                     1e-6,
                     1000,
                     want_norms.data(),
                     want_status.data(),
                     want_iterations.data(),
                     want_points.data(),
                     certificate.data(),
                     workspace.get(),
                     1};
    cpu::solve_samples(args);
    args.norms = norms.data();
    args.status = status.data();
    args.iterations = iterations.data();
    args.perturbations = points.data();
    for (int lanes : kLanes) {
        std::fill(status.begin(), status.end(), int8_t(99));
        std::fill(iterations.begin(), iterations.end(), -1);
        run_samples<T, Effort::quick>(args, lanes);
        run_samples<T, Effort::thorough>(args, lanes);
        check(status == want_status, "samples: the statuses of the CPU, C=%d, %d lanes", int(C), lanes);
        check(iterations == want_iterations, "samples: the iterations of the CPU, C=%d, %d lanes", int(C), lanes);
        for (int64_t at = 0; at < n * K; ++at) {
            const double norm = double(want_norms[at]), off = std::fabs(double(norms[at]) - norm);
            check(
                double(norms[at]) == norm || (std::isnan(norm) && std::isnan(double(norms[at]))) || off <= 1e-5 * norm,
                "samples: norm %g, not %g", double(norms[at]), norm);
            const Real length = length_of(points.data() + at * d, int(d));
            check(status[at] != kOptimal || std::fabs(double(length) - norm) <= 1e-5 * norm, "samples: the points");
        }
    }
}

std::vector<int64_t> all_of(int64_t classes) {
    std::vector<int64_t> targets;
    for (int64_t k = 0; k < classes; ++k) targets.push_back(k);
    return targets;
}

// As prepare_head() leaves the head of a random problem of problems.h.
Prepared<double> prepared(const Problem& p) { return Prepared<double>(p.W, p.classes, p.dim, 1, p.bias); }

void test_families(unsigned seed) {
    for (const Problem& p : families(seed)) {
        const Prepared<double> head = prepared(p);
        std::vector<double> gaps(size_t(p.classes * p.classes), 0.0);
        for (int j = 0; j < p.classes; ++j) gaps[p.target + j * p.classes] = p.gaps[j];
        test_classes<double>(head.view(), gaps, {p.target}, p.family);
    }
}

template <class T>
void test_sizes() {
    const int64_t sizes[][3] = {{1, 3, 4}, {2, 1, 3}, {5, 2, 9}, {10, 16, 60}, {40, 30, 50}};
    unsigned seed = 300;
    for (const auto& size : sizes) {
        const int64_t C = size[0], d = size[1], n = size[2];
        const Prepared<T> head(normals<T>(C * d, seed), C, d, 1, normals<double>(C, seed + 1));
        std::vector<T> logits = normals<T>(n * C, seed + 2), gaps(size_t(C * C), T(0));
        seed += 3;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < C; ++j)
                for (int64_t k = 0; k < C; ++k)
                    gaps[j * C + k] = std::max(gaps[j * C + k], logits[i * C + j] - logits[i * C + k]);
        test_classes<T>(head.view(), gaps, all_of(C), "sizes");
        const std::vector<double> guess = normals<double>(C * C, seed);  // nonsense harms nothing
        test_classes<T>(head.view(), gaps, all_of(C), "guesses", guess.data());
        logits[size_t((n / 2) * C)] = T(NAN);
        test_samples<T>(head.view(), logits, n, all_of(C));
        gaps[0] = gaps[size_t(C * C - 1)] = T(NAN);  // of an own class: never looked at
        test_classes<T>(head.view(), gaps, all_of(C), "diagonal");
        if (C > 1) gaps[1] = T(INFINITY);
        test_classes<T>(head.view(), gaps, all_of(C), "not finite");
    }
}

// Towards class 0, where each violated constraint is taken up once: as many steps as there are, by quick tasks and, of
// those that are too many for them, by thorough ones.
void test_iterations() {
    for (int classes : {20, 2 * core::kQuickActive + 60}) {
        const Problem p = orthogonal(4, classes);
        const Prepared<double> head = prepared(p);
        std::vector<double> gaps(size_t(classes * classes), 0.0);
        for (int j = 0; j < classes; ++j) gaps[size_t(j * classes)] = p.gaps[j];
        const auto expected = std::count_if(p.gaps.begin(), p.gaps.end(), [](double gap) { return gap > 0; });
        const std::vector<int64_t> targets{0};  // the call keeps its address
        ClassCall<double> call(head.view(), gaps, targets, nullptr);
        run_classes<double, Effort::quick>(call.args, 5);
        check((call.status[0] == kCrowded) == (expected > core::kQuickActive), "iterations: status %d", call.status[0]);
        run_classes<double, Effort::thorough>(call.args, 5);
        check(call.iterations[0] == expected, "iterations: %d steps, not %d", call.iterations[0], int(expected));
    }
}

// All constraints active, more than a quick task has room for.
void test_crowded() {
    Problem p = simplex(7, core::kQuickActive + 12);
    const Prepared<double> head = prepared(p);
    std::vector<double> gaps(size_t(p.classes * p.classes), 0.0);
    for (int j = 0; j < p.classes; ++j) gaps[p.target + j * p.classes] = p.gaps[j];
    test_classes<double>(head.view(), gaps, {p.target}, "crowded");
}

// The multipliers of the dense regime against those of the CPU backend, which goes by the active set alone here.
template <class T>
void test_dense(const Prepared<T>& head, const std::vector<T>& gaps, const std::vector<int64_t>& targets, bool dense) {
    const int64_t C = head.classes, K = int64_t(targets.size());
    ClassCall<T> want(head.view(), gaps, targets, nullptr);
    want.solve_on_cpu();
    for (int lanes : kLanes) {
        ClassCall<T> got(head.view(), gaps, targets, nullptr);
        std::vector<double> guess;
        run_classes<T, Effort::quick>(got.args, lanes);
        check(guess_if_dense<T>(got.args, lanes, guess) == dense, "dense: %d", dense);
        for (int64_t at = 0; at < K * C; ++at) {
            const double expected = dense ? double(want.duals[at]) : 0;
            if (got.status[at / C] == kCrowded)
                check(std::fabs(guess[at] - expected) <= (sizeof(T) == 4 ? 1e-6 : 1e-11),
                      "dense: a multiplier of %.17g, not %.17g", guess[at], expected);
        }
        run_classes<T, Effort::thorough>(got.args, lanes);
        compare(got, want, "dense");
    }
}

template <class T>
void test_dense() {
    const Problem p = simplex(9, core::kQuickActive + 5);
    const int64_t C = p.classes;
    std::vector<T> W(p.W.begin(), p.W.end());
    const std::vector<T> noise = normals<T>(C * C, 11);
    std::vector<T> gaps;
    for (int64_t at = 0; at < C * C; ++at) gaps.push_back(at % (C + 1) == 0 ? T(0) : T(1 + 1e-4 * noise[at]));
    const Prepared<T> head(W, C, C, 1);
    test_dense(head, gaps, {0, 70, C - 1}, true);
    std::vector<T> few = gaps;  // towards two of three classes most constraints are slack
    for (int64_t k : {int64_t(0), C - 1})
        for (int64_t j = 10; j < C - 1; ++j) few[j * C + k] = j == k ? T(0) : T(-1);
    test_dense(head, few, {0, 70, C - 1}, false);
    for (int64_t x = 0; x < C; ++x) W[7 * C + x] = W[9 * C + x];  // two equal rows: there is no factor
    const Prepared<T> flat(W, C, C, 1);
    test_dense(flat, gaps, {0, 70, C - 1}, false);
}

// What only a device lets through: a target that is no class, and a head that is not finite.
void test_what_nobody_checked() {
    const int64_t C = 4, d = 3;
    for (bool spoilt : {false, true}) {
        Prepared<double> head(normals<double>(C * d, 5), C, d, 1);
        if (spoilt) head.memory.doubles()[prepared_size(C, d) - 1] = NAN;
        const std::vector<double> gaps = normals<double>(C * C, 6);
        const std::vector<int64_t> targets{C, -1, int64_t(1) << 40, 2};
        ClassCall<double> call(head.view(), gaps, targets, nullptr);
        run_classes<double, Effort::quick>(call.args, 2);
        for (int r = 0; r < 3; ++r) check(call.status[r] == kInvalidInput, "no class: status %d", call.status[r]);
        check((call.status[3] == kInvalidInput) == spoilt, "a spoilt head: status %d", call.status[3]);
    }
}

}  // namespace

int main() {
    test_families(31);
    test_sizes<float>();
    test_sizes<double>();
    test_iterations();
    test_crowded();
    test_dense<float>();
    test_dense<double>();
    test_what_nobody_checked();
    return report("tasks");
}
