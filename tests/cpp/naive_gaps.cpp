// A file of its own, compiled without sanitizers, which would spend most of their time here.
#include "naive_gaps.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace tacfast::test {

template <class T>
std::vector<T> naive_gaps(const T* logits, int64_t n, int64_t classes, int64_t stride) {
    std::vector<T> gaps(static_cast<size_t>(classes * classes), -std::numeric_limits<T>::infinity());
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < classes; ++j)
            for (int64_t k = 0; k < classes; ++k) {
                const T gap = logits[i * stride + j] - logits[i * stride + k];
                T& most = gaps[static_cast<size_t>(j * classes + k)];
                most = std::max(most, gap);
            }
    return gaps;
}

template <class T>
std::vector<T> naive_trimmed(const T* logits, int64_t n, int64_t classes, int64_t stride, std::vector<T> gaps,
                             double trim) {
    if (trim == 0) return gaps;
    std::vector<std::vector<const T*>> rows(static_cast<size_t>(classes));
    for (int64_t i = 0; i < n; ++i) {
        const T* row = logits + i * stride;
        rows[static_cast<size_t>(std::max_element(row, row + classes) - row)].push_back(row);
    }
    for (int64_t j = 0; j < classes; ++j) {
        const std::vector<const T*>& own = rows[static_cast<size_t>(j)];
        if (own.empty()) continue;
        const auto rank = static_cast<int64_t>(std::floor(trim * static_cast<double>(own.size())));
        for (int64_t k = 0; k < classes; ++k) {
            std::vector<T> values;
            for (const T* row : own) values.push_back(row[j] - row[k]);
            std::nth_element(values.begin(), values.begin() + rank, values.end(), std::greater<T>());
            gaps[static_cast<size_t>(j * classes + k)] = values[static_cast<size_t>(rank)];
        }
    }
    return gaps;
}

template std::vector<float> naive_gaps(const float*, int64_t, int64_t, int64_t);
template std::vector<double> naive_gaps(const double*, int64_t, int64_t, int64_t);
template std::vector<float> naive_trimmed(const float*, int64_t, int64_t, int64_t, std::vector<float>, double);
template std::vector<double> naive_trimmed(const double*, int64_t, int64_t, int64_t, std::vector<double>, double);

}  // namespace tacfast::test
