// The gap matrices by their definition, for the tests to compare with.
#pragma once

#include <cstdint>
#include <vector>

namespace tacfast::test {

// gaps[j * C + k] = max_i (L[i, j] - L[i, k]) of logits (n, C) whose rows are `stride` apart.
template <class T>
std::vector<T> naive_gaps(const T* logits, int64_t n, int64_t classes, int64_t stride);

// The same with the (floor(trim * n_j) + 1)-th largest over the n_j rows of class j; `gaps` are those without trim.
template <class T>
std::vector<T> naive_trimmed(const T* logits, int64_t n, int64_t classes, int64_t stride, std::vector<T> gaps,
                             double trim);

}  // namespace tacfast::test
