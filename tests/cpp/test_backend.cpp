// The CPU backend: proven answers, the same bits for any number of threads, and no byte outside its buffers.
#include "backend_case.h"

using namespace tacfast;
using namespace tacfast::test;

namespace {

constexpr int kThreads[] = {2, 5};  // and 1, with which they are compared

template <class T>
std::vector<T> normals(int64_t count, unsigned seed) {
    Random random(seed);
    std::vector<T> values;
    for (int64_t i = 0; i < count; ++i) values.push_back(T(random.normal()));
    return values;
}

// At most so many classes, in no order.
std::vector<int64_t> some_classes(int64_t classes, int64_t most) {
    std::vector<int64_t> targets;
    for (int64_t i = 0; i < std::min(classes, most); ++i) targets.push_back((i * 7 + 3) % classes);
    return targets;
}

// The gaps of n samples as GapUpdate defines them.
template <class T>
std::vector<T> gaps_of(const std::vector<T>& logits, int64_t n, int64_t C) {
    std::vector<T> gaps(static_cast<size_t>(C * C), -std::numeric_limits<T>::infinity());
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < C; ++j)
            for (int64_t k = 0; k < C; ++k)
                gaps[j * C + k] = std::max(gaps[j * C + k], logits[i * C + j] - logits[i * C + k]);
    return gaps;
}

template <class T>
void test_head(const std::vector<T>& W, int64_t C, int64_t d) {
    const Prepared<T> head(W, C, d, 1);
    for (int threads : kThreads) {
        const Prepared<T> again(W, C, d, threads);
        check(again.memory == head.memory, "head: the same bits on %d threads, C=%d d=%d", threads, int(C), int(d));
    }
    const double *rows = head.view().rows(), *middle = head.view().centred(), *gram = head.view().gram();
    bool copied = true;
    Real sum_off = 0, gram_off = 0;
    for (int64_t x = 0; x < head.stride; ++x) {
        Real mean = 0, padding = 0;
        for (int64_t j = 0; j < C; ++j) mean += x < d ? Real(W[j * d + x]) / Real(C) : 0;
        for (int64_t j = 0; j < C; ++j) {
            const Real centred = x < d ? Real(W[j * d + x]) - mean : padding;
            sum_off = std::fmax(sum_off, std::fabs(middle[j * head.stride + x] - centred));
            copied &= rows[j * head.stride + x] == (x < d ? double(W[j * d + x]) : 0.0);
        }
    }
    for (int64_t i = 0; i < C; ++i)
        for (int64_t j = 0; j < C; ++j) {
            Real sum = 0;
            for (int64_t x = 0; x < d; ++x) sum += Real(middle[i * head.stride + x]) * middle[j * head.stride + x];
            gram_off = std::fmax(gram_off, std::fabs(sum - gram[i * C + j]) / Real(d));
        }
    check(copied && sum_off < 1e-14L && gram_off < 1e-14L, "head: C=%d d=%d off by %g, %g", int(C), int(d),
          double(sum_off), double(gram_off));
}

// One class against the definition, by its status.
template <class T>
void check_class(const Question<T>& q, const ClassAnswer<T>& a, int64_t r) {
    const int64_t C = q.head.classes, d = q.head.dim, K = int64_t(q.targets.size()), k = q.targets[r];
    const Definition qp = q.definition(k, q.right.data() + k, C);
    const T *s = a.perturbations.data() + r * d, *lambda = a.duals.data() + r * C;
    const double* certificate = a.certificate.data() + r;
    if (a.status[r] == kInfeasible) {
        const bool shape = std::isinf(a.norms[r]) && std::isnan(s[0]) && std::isnan(s[d - 1]);
        check(shape && proves_infeasible(qp, lambda, sizeof(T) == 4 ? 1e-6L : 1e-11L), "ray: C=%d d=%d k=%d", int(C),
              int(d), int(k));
        return;
    }
    const Residuals found = residuals(qp, s, lambda);
    const bool optimal = a.status[r] == kOptimal && found.within(Question<T>::kTol * 1.001);
    const Real length = length_of(s, int(d));
    check(optimal && std::fabs(length - a.norms[r]) <= 1e-6L * length, "KKT: C=%d d=%d k=%d status %d", int(C), int(d),
          int(k), a.status[r]);
    const Real off = std::fabs(certificate[0] - found.primal) + std::fabs(certificate[K] - found.dual) +
                     std::fabs(certificate[2 * K] - found.stationarity) + std::fabs(certificate[3 * K] - found.gap);
    check(off <= 1e-12L, "certificate: C=%d d=%d k=%d off by %g", int(C), int(d), int(k), double(off));
    const Real slack = sizeof(T) == 4 ? 1e-5L : 1e-9L;
    check(certificate[4 * K] <= length * (1 + slack) && certificate[5 * K] >= length * (1 - slack),
          "bounds: C=%d d=%d k=%d [%g, %g]", int(C), int(d), int(k), certificate[4 * K], certificate[5 * K]);
}

// The same bits on any number of threads, whatever the outputs held before.
template <class T>
ClassAnswer<T> solve_everywhere(const Question<T>& q, const char* what) {
    ClassAnswer<T> first(q, 1, T(1));
    for (int threads : kThreads)
        check(ClassAnswer<T>(q, threads, T(99)) == first, "%s: the same bits on %d threads, C=%d d=%d", what, threads,
              int(q.head.classes), int(q.head.dim));
    return first;
}

// Guesses change no answer beyond its rounding, and garbage harms nothing.
template <class T>
void test_guesses(Question<T> q, const ClassAnswer<T>& cold) {
    const std::vector<double> right(cold.duals.begin(), cold.duals.end());
    const int64_t C = q.head.classes, K = int64_t(q.targets.size());
    const double specials[] = {NAN, -1, 0, 1, INFINITY, -INFINITY, 1e300, 1e-300};
    Random random(5);
    for (int kind = 0; kind < 5; ++kind) {
        if (C > 100 && kind % 2 == 1) continue;
        q.guess = right;
        for (int64_t at = 0; at < K * C; ++at) {
            double& g = q.guess[at];
            if (kind == 1) g = g == 0;  // the complement
            if (kind == 2) g = specials[random.below(8)];
            if (kind == 3) g = 1;  // everything, the class itself included
            if (kind == 4) g = NAN;
        }
        const ClassAnswer<T> warm = solve_everywhere(q, "guess");
        check(warm.status == cold.status, "guess %d: the same status, C=%d d=%d", kind, int(C), int(q.head.dim));
        for (int64_t r = 0; r < K; r += 1 + K / 20) {
            check_class(q, warm, r);
            const double off = std::fabs(double(warm.norms[r]) / double(cold.norms[r]) - 1);
            check(!(off > 1e-5), "guess %d: the same norm, C=%d d=%d, off by %g", kind, int(C), int(q.head.dim), off);
        }
    }
}

// Gaps that are not finite spoil the classes that use them and no other.
template <class T>
void test_invalid(Question<T> q, const ClassAnswer<T>& clean) {
    const int64_t C = q.head.classes, K = int64_t(q.targets.size());
    const double bads[] = {NAN, INFINITY, -INFINITY};
    for (int trial = 0; trial < 3; ++trial) {
        const int64_t k = trial % C, j = (k + 1 + trial) % C == k ? (k + 1) % C : (k + 1 + trial) % C;
        std::vector<T> kept = q.right;
        q.right[j * C + k] = T(bads[trial]);
        q.right[k * C + k] = T(NAN);  // the diagonal is not read
        const ClassAnswer<T> a = solve_everywhere(q, "invalid");
        for (int64_t r = 0; r < K; ++r) {
            const int8_t expected = q.targets[r] == k ? int8_t(kInvalidInput) : clean.status[r];
            check(a.status[r] == expected, "invalid: status %d of class %d, C=%d", a.status[r], int(q.targets[r]),
                  int(C));
            if (q.targets[r] == k)
                check(std::isnan(a.norms[r]) && std::isnan(a.perturbations[r * q.head.dim]), "invalid: NaN results");
        }
        q.right = kept;
    }
}

// Every limit is kept, and says so.
template <class T>
void test_limits(Question<T> q, const ClassAnswer<T>& clean) {
    for (int most : {0, 1, 3}) {
        q.max_iter = most;
        const ClassAnswer<T> stopped = solve_everywhere(q, "max_iter");
        q.max_iter = 1000;
        q.max_active = most;
        const ClassAnswer<T> crowded = solve_everywhere(q, "max_active");
        q.max_active = 1000;
        for (size_t r = 0; r < q.targets.size(); ++r) {
            const int8_t usual = clean.status[r];
            check(stopped.status[r] == usual || stopped.status[r] == kMaxIter, "max_iter: %d", stopped.status[r]);
            check(crowded.status[r] == usual || crowded.status[r] == kCrowded, "max_active: %d", crowded.status[r]);
        }
    }
}

template <class T>
void test_classes(const Prepared<T>& head, const std::vector<T>& logits, int64_t n) {
    const int64_t C = head.classes;
    const bool large = C * head.dim > 3000;
    Question<T> q{head, gaps_of(logits, n, C), some_classes(C, head.dim > 100 ? 40 : C)};
    for (double margin : {0.0, 0.5}) {
        q.margin = margin;
        const ClassAnswer<T> a = solve_everywhere(q, "classes");
        for (int64_t r = 0; r < int64_t(q.targets.size()); r += large ? 4 : 1) check_class(q, a, r);
        if (large && margin > 0) continue;
        test_guesses(q, a);
        if (C > 2) test_invalid(q, a);
        test_limits(q, a);
    }
    q.targets.clear();
    ClassAnswer<T>(q, 5, T(0));  // nothing to do
    q.targets = {C - 1};
    check_class(q, solve_everywhere(q, "one class"), 0);
}

template <class T>
void check_sample(const Question<T>& q, const SampleAnswer<T>& a, int64_t i, int64_t r) {
    const int64_t C = q.head.classes, d = q.head.dim, K = int64_t(q.targets.size()), at = i * K + r;
    const Definition qp = q.definition(q.targets[r], q.right.data() + i * C, 1);
    const T* s = a.perturbations.data() + at * d;
    if (a.status[at] == kInfeasible) {
        check(std::isinf(a.norms[at]) && std::isnan(s[0]), "sample: infeasible");
        return;
    }
    const Real length = length_of(s, int(d));
    Real missing = 0;
    for (int j = 0; j < C; ++j)
        if (qp.kept[j])
            missing = std::fmax(
                missing, (qp.rho[j] - qp.product(j, s)) / (std::fabs(qp.rho[j]) + qp.length(j) * length + 1e-30L));
    check(a.status[at] == kOptimal && missing <= (sizeof(T) == 4 ? 1e-6L : 1e-12L) &&
              std::fabs(length - a.norms[at]) <= 1e-6L * length,
          "sample %d, class %d: status %d, C=%d d=%d, missing %g", int(i), int(q.targets[r]), a.status[at], int(C),
          int(d), double(missing));
}

// A sample on its own is a class problem with one sample: the norms must agree.
template <class T>
void check_against_classes(const Question<T>& q, const SampleAnswer<T>& a, int64_t i) {
    const int64_t C = q.head.classes, K = int64_t(q.targets.size());
    Question<T> one = q;
    one.right = gaps_of(std::vector<T>(q.right.begin() + i * C, q.right.begin() + (i + 1) * C), 1, C);
    const ClassAnswer<T> expected(one, 1, T(0));
    for (int64_t r = 0; r < K; ++r) {
        const double got = double(a.norms[i * K + r]), want = double(expected.norms[r]);
        const double tol = sizeof(T) == 4 ? 1e-4 : 1e-9;
        check(got == want || std::fabs(got - want) <= tol * want, "sample norm %g, class norm %g", got, want);
    }
}

template <class T>
void test_samples(const Prepared<T>& head, const std::vector<T>& logits, int64_t n, double margin) {
    const int64_t C = head.classes;
    Question<T> q{head, logits, some_classes(C, 20), margin};
    const SampleAnswer<T> first(q, n, true, 1, T(1));
    for (int threads : kThreads) {
        check(SampleAnswer<T>(q, n, true, threads, T(99)) == first, "samples: the same bits on %d threads", threads);
        const SampleAnswer<T> bare(q, n, false, threads, T(99));
        check(same_bits(bare.norms, first.norms) && same_bits(bare.status, first.status), "samples: without points");
    }
    for (int64_t i = 0; i < n; i += 1 + n / 15) {
        for (size_t r = 0; r < q.targets.size(); ++r) check_sample(q, first, i, int64_t(r));
        if (i < 4) check_against_classes(q, first, i);
    }
    q.right[(n / 2) * C] = T(NAN);  // class 0 of one sample: no class can be decided for it
    const SampleAnswer<T> spoilt(q, n, true, 2, T(1));
    for (size_t at = 0; at < first.status.size(); ++at) {
        const bool bad = int64_t(at / q.targets.size()) == n / 2;
        check(spoilt.status[at] == (bad && C > 1 ? int8_t(kInvalidInput) : first.status[at]), "samples: one bad row");
    }
    SampleAnswer<T>(q, 0, true, 5, T(0));
    q.targets.clear();
    SampleAnswer<T>(q, n, true, 5, T(0));
}

// Row 1 equals row 0, and decides by its bias; row 2 is the mean of rows 3 and 4.
template <class T>
void test_equal_rows(double margin) {
    const int64_t C = 7, d = 9, n = 30;
    std::vector<T> W = normals<T>(C * d, 77);
    for (int64_t x = 0; x < d; ++x) {
        W[d + x] = W[x];
        for (int64_t j : {3, 4}) W[j * d + x] = T(std::lround(W[j * d + x] * 64)) / 64;  // so that the mean is exact
        W[2 * d + x] = (W[3 * d + x] + W[4 * d + x]) / 2;
    }
    const Prepared<T> head(W, C, d, 1, {0.25, 0, 0, 0, 0, 0, 0});
    const std::vector<T> logits = normals<T>(n * C, 78);
    Question<T> q{head, gaps_of(logits, n, C), {0, 1, 2, 3, 4, 5, 6}, margin};
    const ClassAnswer<T> a = solve_everywhere(q, "equal rows");
    check(a.status[0] == (margin > 0.25 ? kInfeasible : kOptimal), "equal rows: the one with the larger bias");
    check(a.status[1] == kInfeasible && a.duals[C] == 1 && a.iterations[1] == 0,
          "equal rows: the one with the smaller bias");
    check(a.status[2] == kInfeasible, "between two rows: status %d", a.status[2]);
    for (int64_t r = 2; r < C; ++r) check_class(q, a, r);
    q.right = logits;
    const SampleAnswer<T> samples(q, n, true, 2, T(1));
    for (int64_t i = 0; i < n; ++i)
        check(samples.status[i * C + 1] == kInfeasible, "equal rows: samples, status %d", samples.status[i * C + 1]);
}

// How many other classes are ahead of class 0 in a row of logits.
template <class T>
int32_t ahead(const T* logits, int64_t C) {
    return int32_t(std::count_if(logits + 1, logits + C, [=](T logit) { return logit > logits[0]; }));
}

// Towards class 0 the steps are known: one for each violated constraint, and none where there is nothing to do.
template <class T>
void test_iterations() {
    const int64_t C = 12, n = 20;
    const Problem p = orthogonal(5, int(C));
    const Prepared<T> head(std::vector<T>(p.W.begin(), p.W.end()), C, C, 1);
    std::vector<T> logits = normals<T>(n * C, 6);
    for (int64_t x = 1; x < C; ++x) logits[x] = logits[0] - 1;  // the first sample is in class 0 already
    Question<T> q{head, logits, {5, 0}};
    const SampleAnswer<T> samples(q, n, false, 2, T(99));
    for (int64_t i = 0; i < n; ++i)
        check(samples.iterations[2 * i + 1] == ahead(&logits[i * C], C), "iterations: sample %d, %d steps", int(i),
              samples.iterations[2 * i + 1]);
    for (int64_t i : {0, 1, 7}) {  // as if it were the only sample
        const std::vector<T> own(logits.begin() + i * C, logits.begin() + (i + 1) * C);
        q.right = gaps_of(own, 1, C);
        const ClassAnswer<T> a = solve_everywhere(q, "iterations");
        check(a.iterations[1] == ahead(own.data(), C), "iterations: %d steps", a.iterations[1]);
        Question<T> warm = q;
        warm.guess.assign(a.duals.begin(), a.duals.end());
        check(sizeof(T) == 4 || ClassAnswer<T>(warm, 1, T(99)).iterations[1] == 0, "iterations: a right guess");
    }
    q.right = gaps_of(logits, n, C);
    q.max_iter = 2;
    const ClassAnswer<T> stopped(q, 1, T(99));
    check(stopped.status[1] == kMaxIter && stopped.iterations[1] == 2, "iterations: %d of 2", stopped.iterations[1]);
    q.right[C] = T(NAN);
    const ClassAnswer<T> invalid(q, 1, T(99));
    check(invalid.status[1] == kInvalidInput && invalid.iterations[1] == 0, "iterations: invalid input");
}

template <class T>
void test_scalar() {
    const int64_t sizes[][3] = {{1, 3, 5},   {2, 1, 3},    {2, 9, 40},    {5, 1, 6},      {10, 16, 1500},
                                {7, 30, 50}, {33, 20, 40}, {130, 24, 45}, {130, 200, 30}, {30, 4, 20}};
    unsigned seed = 1;
    for (const auto& size : sizes) {
        const int64_t C = size[0], d = size[1], n = size[2];
        const std::vector<T> W = normals<T>(C * d, seed), logits = normals<T>(n * C, seed + 1);
        seed += 2;
        test_head(W, C, d);
        const Prepared<T> head(W, C, d, 1);
        test_classes(head, logits, n);
        test_samples(head, logits, n, seed % 4 == 1 ? 0.3 : 0.0);
    }
    test_equal_rows<T>(0.0);
    test_equal_rows<T>(0.5);
    test_iterations<T>();
}

}  // namespace

int main() {
    test_scalar<float>();
    test_scalar<double>();
    return report(cpu::instruction_set());
}
