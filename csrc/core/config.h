// What every header of core/ starts with: the namespace and the function qualifiers.
//
// core/ is algebra only. It includes <cmath> and <cstdint>, allocates nothing, throws nothing, and runs unchanged on
// one CPU lane, on a warp and on a thread block.
#pragma once

#include <cmath>
#include <cstdint>

// The CPU backend compiles the same sources once per instruction set. The inline namespace keeps those copies
// apart for the linker, which would otherwise merge them and might keep the one this machine cannot run.
#ifndef TACFAST_ISA
#define TACFAST_ISA portable
#endif

#define TACFAST_CORE_BEGIN    \
    namespace tacfast::core { \
    inline namespace TACFAST_ISA {
#define TACFAST_CORE_END \
    }                    \
    }

#ifdef __CUDACC__
#define TACFAST_HD __host__ __device__ __forceinline__
#define TACFAST_PART TACFAST_HD
#else
#define TACFAST_HD inline __attribute__((always_inline))
// A step that is a function of its own on a CPU, or compilers would need minutes for the whole; a GPU wants all in one.
#define TACFAST_PART inline __attribute__((noinline))
#endif

#define TACFAST_RESTRICT __restrict__

TACFAST_CORE_BEGIN

// Vectors of a CPU lane, as wide as the instruction set allows. Device code has none.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
#ifdef __CUDACC__
using Doubles = double;
using Floats = float;
TACFAST_HD Doubles widen(Floats x) { return x; }
#else
using Doubles = double __attribute__((vector_size(kVectorBytes)));
using Floats = float __attribute__((vector_size(kVectorBytes / 2)));
TACFAST_HD Doubles widen(Floats x) { return __builtin_convertvector(x, Doubles); }
#endif
constexpr int kDoubles = static_cast<int>(sizeof(Doubles) / sizeof(double));

TACFAST_CORE_END
