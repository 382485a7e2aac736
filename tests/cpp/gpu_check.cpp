// The CUDA backend against the CPU backend on a real device, without torch, to be run under compute-sanitizer: all
// device memory has exactly the reported size, and what nobody wrote stays unwritten. Status 77 without a device.
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <bit>
#include <cstdlib>

#include "backend_case.h"
#include "core/class_qp.h"

using namespace tacfast;
using namespace tacfast::test;

namespace {

void require(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    std::printf("FAILED: %s: %s\n", what, cudaGetErrorString(error));
    std::exit(1);
}

void require(cuda::Fault fault) {
    if (fault.kernel == nullptr) return;
    std::printf("FAILED: %s: %s\n", fault.kernel, fault.message);
    std::exit(1);
}

template <class T>
class OnDevice {
  public:
    explicit OnDevice(size_t count_) : count(count_) {
        if (count > 0) require(cudaMalloc(reinterpret_cast<void**>(&memory), count * sizeof(T)), "cudaMalloc");
    }
    explicit OnDevice(const std::vector<T>& values) : OnDevice(values.size()) {
        require(cudaMemcpy(memory, values.data(), count * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    ~OnDevice() { cudaFree(memory); }

    T* get() const { return memory; }

    std::vector<T> values() const {  // waits for everything before it
        std::vector<T> result(count);
        require(cudaMemcpy(result.data(), memory, count * sizeof(T), cudaMemcpyDeviceToHost), "copy from the device");
        return result;
    }

  private:
    size_t count;
    T* memory = nullptr;
};

// A stream of its own, which nothing orders with the copies but a wait.
class Stream {
  public:
    Stream() { require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate"); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    ~Stream() { cudaStreamDestroy(stream); }

    cuda::Queue queue() const {  // after whatever was put on the default stream, copies included
        require(cudaDeviceSynchronize(), "waiting for the inputs");
        return {0, stream};
    }
    void wait() const { require(cudaStreamSynchronize(stream), "waiting for the kernels"); }

  private:
    cudaStream_t stream = nullptr;
};

// ---- gap matrices ---------------------------------------------------------------------------------------------------

template <class T>
struct Logits {
    int64_t n, classes, stride;
    std::vector<T> data;

    // With NaN between the rows; rounded, so that there are ties.
    Logits(int64_t n_, int64_t classes_, unsigned seed)
        : n(n_),
          classes(classes_),
          stride(classes_ + 3),
          data(static_cast<size_t>(n * stride), std::numeric_limits<T>::quiet_NaN()) {
        Random random(seed);
        for (int64_t i = 0; i < n; ++i) {
            const int top = random.below(int(classes));
            for (int64_t j = 0; j < classes; ++j)
                data[i * stride + j] = T(std::round(64 * random.normal()) / 64 + (j == top ? 4 : 0));
        }
    }
};

template <class T>
std::vector<T> no_gaps(int64_t classes) {
    return std::vector<T>(static_cast<size_t>(classes * classes), -std::numeric_limits<T>::infinity());
}

template <class T>
std::vector<T> cpu_gaps(const Logits<T>& logits) {
    std::vector<T> gaps = no_gaps<T>(logits.classes);
    const Aligned workspace(cpu::gap_workspace_bytes(scalar_of<T>, logits.n, logits.classes, 1));
    GapUpdate args{scalar_of<T>,  logits.data.data(), logits.n,        logits.classes,
                   logits.stride, gaps.data(),        workspace.get(), 1};
    cpu::update_gaps(args);
    return gaps;
}

// Folds in the first rows and then the others.
template <class T>
std::vector<T> cuda_gaps(const Logits<T>& logits, int64_t first_rows) {
    const Stream stream;
    const OnDevice<T> rows(logits.data), gaps(no_gaps<T>(logits.classes));
    const int64_t begins[] = {0, first_rows, logits.n};
    for (int part = 0; part < 2; ++part) {
        const int64_t n = begins[part + 1] - begins[part];
        const OnDevice<char> workspace(cuda::gap_workspace_bytes(scalar_of<T>, n, logits.classes));
        const GapUpdate args{scalar_of<T>,
                             rows.get() + begins[part] * logits.stride,
                             n,
                             logits.classes,
                             logits.stride,
                             gaps.get(),
                             workspace.get(),
                             1};
        require(cuda::update_gaps(args, stream.queue()));
        stream.wait();  // for the workspace to be freed
    }
    return gaps.values();
}

template <class T>
void check_bad_logits(Logits<T> logits) {
    const int64_t C = logits.classes, bad = C / 2;
    logits.data[(logits.n / 3) * logits.stride + bad] = std::numeric_limits<T>::infinity();
    const std::vector<T> gaps = cuda_gaps(logits, logits.n / 2);  // the second batch is finite
    bool spread = true;
    for (int64_t x = 0; x < C; ++x) spread &= std::isnan(gaps[bad * C + x]) && std::isnan(gaps[x * C + bad]);
    int64_t others = 0;
    for (T gap : gaps) others += std::isnan(gap);
    check(spread && others == 2 * C - 1, "a bad logit: n=%d C=%d, %d gaps are NaN", int(logits.n), int(C), int(others));
}

template <class T>
std::vector<T> cuda_trimmed(const Logits<T>& logits, const std::vector<T>& untrimmed, double trim) {
    const Stream stream;
    const OnDevice<T> values(logits.data), gaps(untrimmed);
    std::vector<int64_t> addresses;
    for (int64_t i = 0; i < logits.n; ++i)
        addresses.push_back(reinterpret_cast<int64_t>(values.get() + i * logits.stride));
    const OnDevice<int64_t> rows(addresses);
    const OnDevice<char> workspace(cuda::trim_workspace_bytes(scalar_of<T>, logits.n, logits.classes));
    const TrimmedGaps args{scalar_of<T>, rows.get(), logits.n, logits.classes, trim, gaps.get(), workspace.get(), 1};
    require(cuda::trimmed_gaps(args, stream.queue()));
    stream.wait();
    return gaps.values();
}

template <class T>
std::vector<T> cpu_trimmed(const Logits<T>& logits, std::vector<T> gaps, double trim) {
    std::vector<int64_t> rows;
    for (int64_t i = 0; i < logits.n; ++i)
        rows.push_back(reinterpret_cast<int64_t>(logits.data.data() + i * logits.stride));
    const Aligned workspace(cpu::trim_workspace_bytes(scalar_of<T>, logits.n, logits.classes));
    const TrimmedGaps args{scalar_of<T>, rows.data(), logits.n, logits.classes, trim, gaps.data(), workspace.get(), 1};
    cpu::trimmed_gaps(args);
    return gaps;
}

template <class T>
void check_gaps() {
    const int64_t sizes[][2] = {{1, 1}, {1, 2}, {7, 3}, {333, 10}, {100, 33}, {1023, 70}, {517, 131}, {65, 301}};
    unsigned seed = 11;
    for (const auto& size : sizes) {
        const Logits<T> logits(size[0], size[1], seed++);
        const int n = int(logits.n), C = int(logits.classes);
        const std::vector<T> gaps = cpu_gaps(logits);
        for (int64_t first : {int64_t(0), logits.n / 3, logits.n})
            check(same_bits(cuda_gaps(logits, first), gaps), "gaps: n=%d C=%d, %d rows first", n, C, int(first));
        if (n > 4 && C > 1) check_bad_logits(logits);
        for (double trim : {0.0, 0.05, 0.5, 0.99})
            check(same_bits(cuda_trimmed(logits, gaps, trim), cpu_trimmed(logits, gaps, trim)),
                  "trimmed gaps: n=%d C=%d trim=%g", n, C, trim);
    }
}

// ---- gap matrices from latents --------------------------------------------------------------------------------------

// A bfloat16.
struct Brain {
    uint16_t upper;
    Brain() = default;
    explicit Brain(float x) : upper(uint16_t(std::bit_cast<uint32_t>(x) >> 16)) {}
    explicit operator float() const { return std::bit_cast<float>(uint32_t(upper) << 16); }
};

template <class S>
constexpr Scalar latent_scalar = sizeof(S) == 2 ? Scalar::bf16 : scalar_of<S>;
template <>
constexpr Scalar latent_scalar<__half> = Scalar::f16;

// On the device a logit is one chain of fused multiply-adds, so that the CPU can have the same bits.
template <class T, class S>
void check_fused(int64_t n, int64_t d, int64_t C, unsigned seed) {
    const int64_t stride = d + seed % 4;
    const T nan = std::numeric_limits<T>::quiet_NaN();
    std::vector<S> latents(size_t(n * stride), S(nan));
    std::vector<T> weights, offset;
    Random random(seed);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t x = 0; x < d; ++x) latents[size_t(i * stride + x)] = S(float(random.normal()));
    for (int64_t x = 0; x < C * d; ++x) weights.push_back(T(random.normal()));
    for (int64_t j = 0; j < C; ++j) offset.push_back(T(random.normal()));
    Logits<T> logits(n, C, 1);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < C; ++j) {
            T sum = 0;
            for (int64_t x = 0; x < d; ++x) sum = std::fma(T(latents[i * stride + x]), weights[j * d + x], sum);
            logits.data[i * logits.stride + j] = sum + offset[j];
        }
    const Stream stream;
    const OnDevice<S> rows(latents);
    const OnDevice<T> on_weights(weights), on_offset(offset), gaps(no_gaps<T>(C));
    const OnDevice<char> workspace(cuda::fused_workspace_bytes(scalar_of<T>, C));
    const int64_t begins[] = {0, n / 2, n};
    for (int part = 0; part < 2; ++part) {
        const FusedGaps args{scalar_of<T>,
                             latent_scalar<S>,
                             rows.get() + begins[part] * stride,
                             begins[part + 1] - begins[part],
                             d,
                             stride,
                             on_weights.get(),
                             d,
                             on_offset.get(),
                             C,
                             gaps.get(),
                             workspace.get()};
        require(cuda::update_gaps_fused(args, stream.queue()));
    }
    stream.wait();
    check(same_bits(gaps.values(), cpu_gaps(logits)), "fused gaps: n=%d d=%d C=%d, %d bytes a latent", int(n), int(d),
          int(C), int(sizeof(S)));
}

template <class T, class S>
void check_fused() {
    const int64_t sizes[][3] = {{1, 1, 2}, {700, 8, 10}, {333, 33, 43}, {130, 64, 100}, {5000, 20, 128}};
    unsigned seed = 3;
    for (const auto& size : sizes) check_fused<T, S>(size[0], size[1], size[2], seed++);
    check(cuda::fused_workspace_bytes(scalar_of<T>, 257) == 0, "too many classes to fuse");
}

// ---- class-wise QPs -------------------------------------------------------------------------------------------------

template <class T>
struct Head {
    OnDevice<double> memory;
    PreparedHead view;

    explicit Head(const Prepared<T>& host)
        : memory(std::vector<double>(host.memory.doubles(),
                                     host.memory.doubles() + prepared_size(host.classes, host.dim))),
          view(host.view()) {
        view.memory = memory.get();
    }
};

// As ClassAnswer.
template <class T>
struct CudaClassAnswer {
    std::vector<T> perturbations, norms, duals;
    std::vector<int8_t> status;
    std::vector<int32_t> iterations;
    std::vector<double> certificate;

    explicit CudaClassAnswer(const Question<T>& q) {
        const int64_t C = q.head.classes, d = q.head.dim, K = int64_t(q.targets.size());
        const Stream stream;
        const Head<T> head(q.head);
        const OnDevice<T> gaps(q.right), points(K * d), lengths(K), multipliers(K * C);
        const OnDevice<int64_t> targets(q.targets);
        const OnDevice<int8_t> states(K);
        const OnDevice<int32_t> steps(K);
        const OnDevice<double> certificates(K * kCertificateFields);
        const OnDevice<char> workspace(cuda::solve_workspace_bytes(C, d, K));
        ClassSolve args{};
        args.scalar = scalar_of<T>;
        args.head = head.view;
        args.gaps = gaps.get();
        args.gap_stride_k = 1;
        args.gap_stride_j = C;
        args.targets = targets.get();
        args.count = args.last = K;
        args.margin = q.margin;
        args.tol = Question<T>::kTol;
        args.max_iter = q.max_iter;
        args.max_active = q.max_active;
        args.perturbations = points.get();
        args.norms = lengths.get();
        args.status = states.get();
        args.iterations = steps.get();
        args.duals = multipliers.get();
        args.certificate = certificates.get();
        args.workspace = workspace.get();
        require(cuda::solve_classes(args, stream.queue()));
        stream.wait();
        perturbations = points.values();
        norms = lengths.values();
        duals = multipliers.values();
        status = states.values();
        iterations = steps.values();
        certificate = certificates.values();
    }
};

// Whether the outputs prove the status, by the definition alone.
template <class T, class Answer>
bool proven(const Question<T>& q, const Answer& a, int64_t r) {
    const int64_t C = q.head.classes, d = q.head.dim, k = q.targets[r], K = int64_t(q.targets.size());
    const Definition qp = q.definition(k, q.right.data() + k, C);
    const T *s = a.perturbations.data() + r * d, *lambda = a.duals.data() + r * C;
    if (a.status[r] == kInfeasible) {
        for (int j = 0; j < int(C); ++j)  // a row equal to the target's, which wins by its bias
            if (!qp.kept[j] && lambda[j] == 1 && qp.rho[j] > 0) return std::isinf(a.norms[r]);
        return std::isinf(a.norms[r]) && proves_infeasible(qp, lambda, sizeof(T) == 4 ? 1e-6L : 1e-11L);
    }
    const Residuals found = residuals(qp, s, lambda);
    const double* c = a.certificate.data() + r;
    const Real off = std::fabs(c[0] - found.primal) + std::fabs(c[K] - found.dual) +
                     std::fabs(c[2 * K] - found.stationarity) + std::fabs(c[3 * K] - found.gap);
    return a.status[r] == kOptimal && found.within(Question<T>::kTol * 1.001) && off <= 1e-12L;
}

// `sharp`: one status is right, and rounding leads to no other.
template <class T>
void check_classes(const Question<T>& q, const char* what, bool sharp) {
    const CudaClassAnswer<T> ours(q);
    const ClassAnswer<T> reference(q, 1, T(0));
    const int C = int(q.head.classes), d = int(q.head.dim);
    for (size_t r = 0; r < q.targets.size(); ++r) {
        const int64_t at = int64_t(r);
        check(proven(q, ours, at) || (!sharp && !proven(q, reference, at)),
              "%s, classes: C=%d d=%d k=%d, status %d, residuals %g %g %g %g", what, C, d, int(q.targets[r]),
              ours.status[r], ours.certificate[r], ours.certificate[r + q.targets.size()],
              ours.certificate[r + 2 * q.targets.size()], ours.certificate[r + 3 * q.targets.size()]);
        if (!sharp) continue;
        const double norm = double(ours.norms[r]), expected = double(reference.norms[r]);
        check(ours.status[r] == reference.status[r] &&
                  (norm == expected || std::fabs(norm - expected) <= (sizeof(T) == 4 ? 1e-5 : 1e-9) * expected),
              "%s, classes: C=%d d=%d k=%d, status %d on the GPU and %d on the CPU, norms %.9g and %.9g", what, C, d,
              int(q.targets[r]), ours.status[r], reference.status[r], norm, expected);
    }
}

// ---- QPs of single samples ------------------------------------------------------------------------------------------

// As SampleAnswer.
template <class T>
struct CudaSampleAnswer {
    std::vector<T> norms, perturbations;
    std::vector<int8_t> status;
    std::vector<int32_t> iterations;
    std::vector<double> certificate;

    CudaSampleAnswer(const Question<T>& q, int64_t n, bool with_points) {
        const int64_t C = q.head.classes, d = q.head.dim, K = int64_t(q.targets.size());
        const Stream stream;
        const Head<T> head(q.head);
        std::vector<double> none(K * kCertificateFields, 0.0);
        for (int64_t r = 0; r < K; ++r) none[4 * K + r] = INFINITY;  // nothing folded in yet
        const OnDevice<T> logits(q.right), lengths(n * K), points(with_points ? n * K * d : 0);
        const OnDevice<int64_t> targets(q.targets);
        const OnDevice<int8_t> states(n * K);
        const OnDevice<int32_t> steps(n * K);
        const OnDevice<double> certificates(none);
        const OnDevice<char> workspace(cuda::sample_workspace_bytes(C, d, n, K));
        SampleSolve args{};
        args.scalar = scalar_of<T>;
        args.head = head.view;
        args.logits = logits.get();
        args.n = n;
        args.targets = targets.get();
        args.count = K;
        args.margin = q.margin;
        args.tol = Question<T>::kTol;
        args.max_iter = q.max_iter;
        args.norms = lengths.get();
        args.status = states.get();
        args.iterations = steps.get();
        args.perturbations = points.get();
        args.certificate = certificates.get();
        args.workspace = workspace.get();
        require(cuda::solve_samples(args, stream.queue()));
        stream.wait();
        norms = lengths.values();
        perturbations = points.values();
        status = states.values();
        iterations = steps.values();
        certificate = certificates.values();
    }
};

template <class T>
void check_samples(const Question<T>& q, int64_t n) {
    const SampleAnswer<T> reference(q, n, true, 1, T(0));
    const size_t K = q.targets.size();
    for (bool with_points : {true, false}) {
        const CudaSampleAnswer<T> ours(q, n, with_points);
        bool same_status = same_bits(ours.status, reference.status);
        double off = 0, worst = 0;
        for (size_t at = 0; at < ours.norms.size(); ++at) {
            const double norm = double(ours.norms[at]), expected = double(reference.norms[at]);
            if (norm != expected) off = std::fmax(off, std::fabs(norm - expected) / expected);
        }
        for (size_t r = 0; r < 4 * K; ++r) worst = std::fmax(worst, ours.certificate[r]);
        check(same_status && off <= (sizeof(T) == 4 ? 1e-5 : 1e-9) && worst <= Question<T>::kTol,
              "samples: n=%d C=%d d=%d, same statuses: %d, norms off by %g, certificate %g", int(n),
              int(q.head.classes), int(q.head.dim), same_status, off, worst);
        for (size_t at = 0; with_points && at < ours.norms.size(); ++at) {
            const Real length = length_of(ours.perturbations.data() + at * q.head.dim, int(q.head.dim));
            if (ours.status[at] == kOptimal)
                check(std::fabs(length - ours.norms[at]) <= 1e-6L * length, "samples: perturbation %d", int(at));
        }
    }
}

template <class T>
void check_solves() {
    const int64_t sizes[][3] = {{2, 1, 3}, {5, 1, 6}, {10, 16, 150}, {33, 20, 40}, {131, 24, 45}, {61, 201, 30}};
    unsigned seed = 1;
    for (const auto& size : sizes) {
        const int64_t C = size[0], d = size[1], n = size[2];
        Random random(seed++);
        std::vector<T> W, logits;
        for (int64_t i = 0; i < C * d; ++i) W.push_back(T(random.normal()));
        for (int64_t i = 0; i < n * C; ++i) logits.push_back(T(random.normal()));
        const Prepared<T> head(W, C, d, 1);
        Question<T> q{head, no_gaps<T>(C), {}, 0.0};
        for (int64_t k = C - 1; k >= 0; k -= 1 + C / 40) q.targets.push_back(k);
        const Aligned workspace(cpu::gap_workspace_bytes(scalar_of<T>, n, C, 1));
        GapUpdate update{scalar_of<T>, logits.data(), n, C, C, q.right.data(), workspace.get(), 1};
        cpu::update_gaps(update);
        for (double margin : {0.0, 0.5}) {
            q.margin = margin;
            check_classes(q, "random", true);
        }
        q.right = logits;
        check_samples(q, n);
    }
}

// Every family, one class each.
void check_families() {
    for (const Problem& p : families(3)) {
        const Prepared<double> head(p.W, p.classes, p.dim, 1, p.bias);
        Question<double> q{head, std::vector<double>(size_t(p.classes * p.classes), 0.0), {p.target}, p.margin};
        for (int j = 0; j < p.classes; ++j) q.right[j * p.classes + p.target] = p.gaps[j];
        check_classes(q, p.family, p.generic);
    }
}

// Towards class 0, where each violated constraint is taken up once, by quick tasks or, where they are many, by
// thorough.
void check_iterations() {
    for (int64_t C : {20, 2 * core::kQuickActive + 60}) {
        const Problem p = orthogonal(4, int(C));
        const Prepared<double> head(p.W, C, C, 1);
        const auto expected = std::count_if(p.gaps.begin(), p.gaps.end(), [](double gap) { return gap > 0; });
        Question<double> q{head, p.gaps, {0}};  // as the logits of one sample, of which that of class 0 is 0
        const CudaSampleAnswer<double> sample(q, 1, false);
        q.right.assign(size_t(C * C), 0.0);
        for (int64_t j = 0; j < C; ++j) q.right[size_t(j * C)] = p.gaps[size_t(j)];
        const CudaClassAnswer<double> shared(q);
        check(sample.iterations[0] == expected && shared.iterations[0] == expected, "%d and %d iterations, not %d",
              sample.iterations[0], shared.iterations[0], int(expected));
    }
}

// All constraints active: more than quick tasks have room for, so that one factor serves every class.
void check_dense() {
    const Problem p = simplex(5, core::kQuickActive + 30);
    const int64_t C = p.classes;
    const Prepared<double> head(p.W, C, C, 1);
    Question<double> q{head, std::vector<double>(size_t(C * C), 0.0), {0, 40, C - 1}};
    Random random(6);
    for (int64_t at = 0; at < C * C; ++at) q.right[at] = at % (C + 1) == 0 ? 0 : 1 + 1e-4 * random.normal();
    check_classes(q, "dense", true);
}

}  // namespace

int main() {
    const cuda::DeviceReport devices = cuda::devices();
    if (devices.count == 0) {
        std::printf("gpu_check: no usable CUDA device, nothing was checked: %s\n", devices.message);
        return 77;
    }
    require(cudaSetDevice(0), "cudaSetDevice");
    check_gaps<float>();
    check_gaps<double>();
    check_fused<float, float>();
    check_fused<double, double>();
    check_fused<float, __half>();
    check_fused<float, Brain>();
    check_fused<float, float>(3000, 50, 256, 8);
    check_solves<float>();
    check_solves<double>();
    check_families();
    check_iterations();
    check_dense();
    return report("cuda");
}
