// What the tests of the gap kernels share: the device's atomic operations on gaps, and gaps to compare.
#pragma once

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

namespace tacfast::test {

template <class T>
constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
template <class T>
constexpr T kInf = std::numeric_limits<T>::infinity();

// The device's atomic operations on the bits of the gaps.
template <class T>
struct AtomicCells {
    using Signed = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    using Unsigned = std::make_unsigned_t<Signed>;
    T* gaps;

    T load(int64_t at) const { return std::atomic_ref<T>(gaps[at]).load(); }
    void raise_signed(int64_t at, T value) const {
        const auto bits = std::bit_cast<Signed>(value);
        replace(at, value, [bits](T old) { return bits > std::bit_cast<Signed>(old); });
    }
    void lower_unsigned(int64_t at, T value) const {
        const auto bits = std::bit_cast<Unsigned>(value);
        replace(at, value, [bits](T old) { return bits < std::bit_cast<Unsigned>(old); });
    }

    template <class Wanted>
    void replace(int64_t at, T value, const Wanted& wanted) const {
        std::atomic_ref<T> cell(gaps[at]);
        T old = cell.load();
        while (wanted(old) && !cell.compare_exchange_weak(old, value)) {
        }
    }
};

template <class T>
std::vector<T> fresh(int64_t classes) {
    return std::vector<T>(static_cast<size_t>(classes * classes), -kInf<T>);
}

template <class T>
bool same_gaps(const std::vector<T>& a, const std::vector<T>& b) {
    for (size_t i = 0; i < a.size(); ++i)
        if (std::isnan(a[i]) ? !std::isnan(b[i]) : std::memcmp(&a[i], &b[i], sizeof(T)) != 0) return false;
    return a.size() == b.size();
}

}  // namespace tacfast::test
