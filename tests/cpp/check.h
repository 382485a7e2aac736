// Counts checks and says which failed.
#pragma once

#include <bit>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>

namespace tacfast::test {

inline int passed = 0, failed = 0;

// `format` and the rest say what was checked, as in printf.
__attribute__((format(printf, 2, 3))) inline bool check(bool ok, const char* format, ...) {
    ++(ok ? passed : failed);
    if (!ok && failed <= 40) {
        va_list rest;
        va_start(rest, format);
        std::printf("FAILED: ");
        std::vprintf(format, rest);
        std::printf("\n");
        va_end(rest);
    }
    return ok;
}

inline int report(const char* name) {
    std::printf("%s: %d passed, %d failed\n", name, passed, failed);
    return failed != 0;
}

inline bool same_bits(double a, double b) { return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b); }

template <class Vector>
bool same_bits(const Vector& a, const Vector& b) {
    return a.size() == b.size() &&
           (a.size() == 0 || std::memcmp(a.data(), b.data(), a.size() * sizeof(*a.data())) == 0);
}

}  // namespace tacfast::test
