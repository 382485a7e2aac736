// How the kernels of the gap matrix reach memory: a block, its copies to shared memory, and the gaps it shares.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "core/gap_tile.h"

namespace tacfast::cuda {

template <int threads>
struct Block {
    __device__ int rank() const { return static_cast<int>(threadIdx.x); }
    __device__ int lanes() const { return threads; }
    __device__ void sync() const { __syncthreads(); }

    template <class F>
    __device__ void each(int n, const F& f) const {
        for (int i = rank(); i < n; i += threads) f(i);
    }
};

__device__ inline int bits(float x) { return __float_as_int(x); }
__device__ inline long long bits(double x) { return __double_as_longlong(x); }
__device__ inline unsigned without_sign(int x) { return static_cast<unsigned>(x); }
__device__ inline unsigned long long without_sign(long long x) { return static_cast<unsigned long long>(x); }

template <class T>
struct Cells {
    using Bits = decltype(bits(T()));
    T* gaps;

    __device__ T load(int64_t at) const { return __ldcg(gaps + at); }
    __device__ void raise_signed(int64_t at, T value) const {
        atomicMax(reinterpret_cast<Bits*>(gaps + at), bits(value));
    }
    __device__ void lower_unsigned(int64_t at, T value) const {
        atomicMin(reinterpret_cast<decltype(without_sign(Bits()))*>(gaps + at), without_sign(bits(value)));
    }
};

// Entry by entry, through registers.
template <class T>
struct PlainCopy {
    template <class From>
    __device__ void operator()(core::Pack<T>* to, const From* from, int there) const {
        for (int e = 0; e < core::Pack<T>::size; ++e) to->entry[e] = e < there ? T(from[e]) : T(0);
    }
    __device__ void wait() const {}
};

// Past the registers, while the stage before is worked on. Only what is past the last column is written at once.
template <class T>
struct AsyncCopy {
    bool aligned;  // whether a pack is, where it comes from

    __device__ void operator()(core::Pack<T>* to, const T* from, int there) const {
        if (aligned && there >= core::Pack<T>::size) {
            __pipeline_memcpy_async(to, from, sizeof *to);
            return;
        }
        for (int e = 0; e < core::Pack<T>::size; ++e) {
            if (e < there) {
                __pipeline_memcpy_async(to->entry + e, from + e, sizeof(T));
            } else {
                to->entry[e] = T(0);
            }
        }
    }
    __device__ void wait() const {
        __pipeline_commit();
        __pipeline_wait_prior(0);
    }
};

template <class T>
bool packs_are_aligned(const void* matrix, int64_t row_stride) {
    return reinterpret_cast<uintptr_t>(matrix) % sizeof(core::Pack<T>) == 0 && row_stride % core::Pack<T>::size == 0;
}

}  // namespace tacfast::cuda
