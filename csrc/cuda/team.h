// Warps and thread blocks behind the Team interface of core/team.h.
#pragma once

#include "core/team.h"

namespace tacfast::cuda {

using core::Best, core::no_best;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ double warp_sum(double part) {
    for (int step = kWarp / 2; step > 0; step /= 2) part += __shfl_xor_sync(kAllLanes, part, step);
    return part;
}

__device__ __forceinline__ Best warp_best(Best best) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
        const double value = __shfl_xor_sync(kAllLanes, best.value, step);
        const int index = __shfl_xor_sync(kAllLanes, best.index, step);
        if (best.loses_to(value, index)) best = {value, index};
    }
    return best;
}

// What both teams do alike: their lanes take every lanes()-th index.
template <class Self>
struct Strided {
    __device__ __forceinline__ const Self& self() const { return static_cast<const Self&>(*this); }

    template <class F>
    __device__ __forceinline__ void each(int n, const F& f) const {
        for (int i = self().rank(); i < n; i += self().lanes()) f(i);
    }

    template <class F>
    __device__ __forceinline__ void grid(int n, int m, const F& f) const {
        for (int at = self().rank(); at < n * m; at += self().lanes()) f(at / m, at % m);
    }

    template <class Term>
    __device__ __forceinline__ void combine(int n, int m, double start, const Term& term, double* out) const {
        core::combine_each(self(), n, m, start, term, out);
    }

    template <class F>
    __device__ __forceinline__ double partial_sum(int n, const F& f) const {
        double part = 0;
        each(n, [&](int i) { part += f(i); });
        return part;
    }

    template <class F>
    __device__ __forceinline__ Best partial_best(int n, const F& f) const {
        Best best = no_best();
        each(n, [&](int i) {
            const double value = f(i);
            if (value > best.value) best = {value, i};
        });
        return best;
    }

    // A warp per sum, its lanes side by side in memory.
    template <class Term, class Store>
    __device__ __forceinline__ void dots(int n, int m, const Term& term, const Store& store) const {
        const int lane = self().rank() % kWarp;
        for (int i = self().rank() / kWarp; i < n; i += self().lanes() / kWarp) {
            double part = 0;
            for (int x = lane; x < m; x += kWarp) part += term(i, [x](const auto* p) { return double(p[x]); });
            const double total = warp_sum(part);
            if (lane == 0) store(i, total);
        }
    }
};

// One warp of a block.
struct WarpTeam : Strided<WarpTeam> {
    __device__ __forceinline__ int rank() const { return static_cast<int>(threadIdx.x) % kWarp; }
    __device__ __forceinline__ int lanes() const { return kWarp; }
    __device__ __forceinline__ void sync() const { __syncwarp(); }

    template <class F>
    __device__ __forceinline__ int collect(int n, const F& f, int* list) const {
        sync();
        int count = 0;
        for (int first = 0; first < n; first += kWarp) {
            const int i = first + rank();
            const bool found = i < n && f(i);
            const unsigned votes = __ballot_sync(kAllLanes, found);
            if (found) list[count + __popc(votes & ((1u << rank()) - 1))] = i;
            count += __popc(votes);
        }
        sync();
        return count;
    }

    template <class F>
    __device__ __forceinline__ double sum(int n, const F& f) const {
        const double part = this->partial_sum(n, f);
        sync();
        return warp_sum(part);
    }

    template <class F>
    __device__ __forceinline__ Best largest(int n, const F& f) const {
        const Best best = this->partial_best(n, f);
        sync();
        return warp_best(best);
    }
};

// All warps of a block. A reduction synchronises once: its partial results alternate between two arrays, so that a warp
// which is already at the next reduction overwrites nothing that another still reads.
template <int threads>
class BlockTeam : public Strided<BlockTeam<threads>> {
  public:
    static constexpr int kWarps = threads / kWarp;
    struct Shared {
        double sums[2 * kWarps];
        Best bests[2 * kWarps];
        int counts[kWarps];
    };

    __device__ __forceinline__ explicit BlockTeam(Shared& shared_) : shared(&shared_) {}

    __device__ __forceinline__ int rank() const { return static_cast<int>(threadIdx.x); }
    __device__ __forceinline__ int lanes() const { return threads; }
    __device__ __forceinline__ void sync() const { __syncthreads(); }

    template <class F>
    __device__ __forceinline__ int collect(int n, const F& f, int* list) const {
        int total = 0;
        for (int first = 0; first < n; first += threads) {
            sync();  // the counts of the round before have been read, as has what f() reads been written
            const int i = first + rank();
            const bool found = i < n && f(i);
            const unsigned votes = __ballot_sync(kAllLanes, found);
            if (lane() == 0) shared->counts[warp()] = __popc(votes);
            sync();
            int before = total;
            for (int w = 0; w < kWarps; ++w) {
                if (w < warp()) before += shared->counts[w];
                total += shared->counts[w];
            }
            if (found) list[before + __popc(votes & ((1u << lane()) - 1))] = i;
        }
        sync();
        return total;
    }

    template <class F>
    __device__ __forceinline__ double sum(int n, const F& f) const {
        const double part = warp_sum(this->partial_sum(n, f));
        double* parts = shared->sums + turn();
        if (lane() == 0) parts[warp()] = part;
        sync();
        double total = 0;
        for (int w = 0; w < kWarps; ++w) total += parts[w];
        return total;
    }

    template <class F>
    __device__ __forceinline__ Best largest(int n, const F& f) const {
        Best best = warp_best(this->partial_best(n, f));
        Best* parts = shared->bests + turn();
        if (lane() == 0) parts[warp()] = best;
        sync();
        for (int w = 0; w < kWarps; ++w)
            if (best.loses_to(parts[w].value, parts[w].index)) best = parts[w];
        return best;
    }

  private:
    Shared* shared;
    mutable bool odd = false;

    __device__ __forceinline__ int warp() const { return rank() / kWarp; }
    __device__ __forceinline__ int lane() const { return rank() % kWarp; }
    __device__ __forceinline__ int turn() const {
        odd = !odd;
        return odd ? kWarps : 0;
    }
};

}  // namespace tacfast::cuda
