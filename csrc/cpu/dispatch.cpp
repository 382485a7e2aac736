// Chooses the widest instruction set that this machine can run, once.
#include <cstdlib>
#include <cstring>

#include "cpu/kernels.h"

namespace tacfast::cpu {
namespace {

// From narrow to wide; TACFAST_ISA caps the choice, so that a wide machine can test the narrower paths.
const Kernels& choose() {
    const Kernels* best = &baseline::kernels;
#ifdef TACFAST_X86
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    const char* cap = std::getenv("TACFAST_ISA");
    auto capped = [&] { return cap != nullptr && std::strcmp(cap, best->name) == 0; };
    if (has_avx2 && !capped()) best = &avx2::kernels;
    if (has_avx512 && !capped()) best = &avx512::kernels;
#endif
    return *best;
}

const Kernels& chosen() {
    static const Kernels& kernels = choose();
    return kernels;
}

}  // namespace

void prepare_head(HeadPreparation& args) { chosen().prepare_head(args); }
void multiply_logits(const LogitProduct& args) { chosen().multiply_logits(args); }
int64_t solve_workspace_bytes(int64_t classes, int64_t dim, int threads) {
    return chosen().solve_workspace_bytes(classes, dim, threads);
}
void solve_classes(const ClassSolve& args) { chosen().solve_classes(args); }
int64_t sample_workspace_bytes(int64_t classes, int64_t dim, int64_t count, int threads) {
    return chosen().sample_workspace_bytes(classes, dim, count, threads);
}
void solve_samples(const SampleSolve& args) { chosen().solve_samples(args); }
int64_t gap_workspace_bytes(Scalar scalar, int64_t n, int64_t classes, int threads) {
    return chosen().gap_workspace_bytes(scalar, n, classes, threads);
}
void update_gaps(GapUpdate& args) { chosen().update_gaps(args); }
int64_t trim_workspace_bytes(Scalar scalar, int64_t n, int64_t classes) {
    return chosen().trim_workspace_bytes(scalar, n, classes);
}
void trimmed_gaps(const TrimmedGaps& args) { chosen().trimmed_gaps(args); }
const char* instruction_set() { return chosen().name; }

}  // namespace tacfast::cpu
