// Chooses the widest instruction set that this machine can run, once.
#include <cstdlib>
#include <cstring>

#include "cpu/kernels.h"

namespace tacfast::cpu {
namespace {

const Kernels& choose() {
#ifdef TACFAST_X86
    const Kernels* best = &baseline::kernels;
    const char* wanted = std::getenv("TACFAST_ISA");  // to test the narrower paths on a wide machine
    auto offer = [&](const Kernels& kernels, bool runs) {
        if (runs && (wanted == nullptr || std::strcmp(wanted, "baseline") != 0) &&
            (std::strcmp(best->name, "baseline") == 0 || wanted == nullptr || std::strcmp(wanted, best->name) != 0))
            best = &kernels;
    };
    __builtin_cpu_init();
    offer(avx2::kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
    offer(avx512::kernels, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"));
    return *best;
#else
    return baseline::kernels;
#endif
}

const Kernels& chosen() {
    static const Kernels& kernels = choose();
    return kernels;
}

}  // namespace

int64_t gap_workspace_bytes(Scalar scalar, int64_t n, int64_t classes, int threads) {
    return chosen().gap_workspace_bytes(scalar, n, classes, threads);
}
void update_gaps(GapUpdate& args) { chosen().update_gaps(args); }
int64_t trim_workspace_bytes(Scalar scalar, int64_t n, int64_t classes, int threads) {
    return chosen().trim_workspace_bytes(scalar, n, classes, threads);
}
void trimmed_gaps(const TrimmedGaps& args) { chosen().trimmed_gaps(args); }
const char* instruction_set() { return chosen().name; }

}  // namespace tacfast::cpu
