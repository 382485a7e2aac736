// The lists from which trimmed gaps are selected.
#pragma once

#include "core/gap_pruning.h"
#include "cpu/select.h"
#include "cpu/simd.h"

namespace tacfast::cpu::TACFAST_ISA {

template <class T>
int64_t vectors_per_row(int64_t classes) {
    return (classes + kLanes<T> - 1) / kLanes<T>;
}

inline int64_t rows_kept_whole(int64_t rank, int64_t rows_of_class) {
    return at_most(rows_of_class, at_least(4 * rank, 1024));
}
inline int64_t room_for_news(int64_t rank) { return at_least(64, rank / 2); }

// The largest differences L[i, j] - L[i, k] so far, for one class j and all k: a vector of lists per vector
// of k.
template <class T, bool narrow>
struct Lists {
    int64_t j, classes, vectors, rank, whole, room, capacity;
    T* bounds;       // (vectors, lanes) `rank` differences are at least so large; +inf where k = j or k >= C
    int32_t* count;  // (vectors, lanes) lengths of the lists
    int32_t* fresh;  // (vectors, lanes) and of the news
    bool* stale;     // (vectors,) the bounds are older than the lists or the news
    T* values;       // (vectors, capacity, lanes) the lists
    T* news;         // (vectors, lanes, room) waiting for the lists, contiguous because they come one by one

    static constexpr int lanes = kLanes<T>;

    static int64_t bytes(int64_t classes, int64_t trim_rank, int64_t rows) {
        const int64_t width = vectors_per_row<T>(classes) * lanes, room = room_for_news(trim_rank);
        return padded<Lists>(1) + padded<T>(width) + 2 * padded<int32_t>(width) + padded<bool>(width) +
               padded<T>(width * (rows_kept_whole(trim_rank, rows) + room)) + padded<T>(width * room);
    }

    Lists(char* memory, int64_t cls, int64_t columns, int64_t trim_rank, int64_t rows)
        : j(cls),
          classes(columns),
          vectors(vectors_per_row<T>(columns)),
          rank(trim_rank),
          whole(rows_kept_whole(trim_rank, rows)),
          room(room_for_news(trim_rank)),
          capacity(whole + room) {
        const int64_t width = vectors * lanes;
        take(memory, bounds, width);
        take(memory, count, width);
        take(memory, fresh, width);
        take(memory, stale, width);
        take(memory, values, width * capacity);
        take(memory, news, width * room);
        for (int64_t k = 0; k < width; ++k) {
            bounds[k] = -kInf<T>;
            fresh[k] = 0;
        }
    }

    int64_t start(int64_t v) const { return vector_start<T>(v * lanes, classes); }

    Vec<T> differences(const T* row, int64_t v) const {
        return broadcast(row[j]) - load_columns<narrow>(row, start(v), classes, kInf<T>) + Vec<T>{};  // + 0: no -0
    }

    // Begins the lists with `whole` rows.
    void begin(const int64_t* rows, const int32_t* chosen) {
        for (int64_t v = 0; v < vectors; ++v) {
            T* to = values + v * capacity * lanes;
            for (int64_t i = 0; i < whole; ++i)
                store(to + i * lanes, differences(reinterpret_cast<const T*>(rows[chosen[i]]), v));
        }
        for (int64_t k = 0; k < vectors * lanes; ++k) count[k] = static_cast<int32_t>(whole);
        for (int64_t v = 0; v < vectors; ++v) stale[v] = true;
    }

    // Appends what exceeds the bounds; says whether that has raised one of them.
    bool offer(const T* row) {
        bool raised = false;
        for (int64_t v = 0; v < vectors; ++v) {
            const Vec<T> difference = differences(row, v);
            uint32_t bits = greater<T>(difference, load(bounds + v * lanes));
            if (__builtin_expect(bits == 0, 1)) continue;
            T spilled[lanes];
            store(spilled, difference);
            bool full = false;
            stale[v] = true;
            for (; bits != 0; bits &= bits - 1) {
                const int lane = __builtin_ctz(bits);
                const int64_t k = v * lanes + lane;
                news[k * room + fresh[k]++] = spilled[lane];
                full |= fresh[k] == room;
            }
            if (full) raise_bounds(v);
            raised |= full;
        }
        return raised;
    }

    void raise_bounds(int64_t v) {
        if (!stale[v]) return;
        stale[v] = false;
        const int64_t longest = take_news(v);
        const T* list = values + v * capacity * lanes;
        auto difference = [&](int64_t i) { return load(list + i * lanes); };
        store(bounds + v * lanes, select<T>(difference, longest, rank, load(bounds + v * lanes)));
        block_lanes(v);
    }

    // Appends the news to the lists, which are filled up with -inf to the length of the longest.
    int64_t take_news(int64_t v) {
        int64_t longest = 0;
        for (int64_t k = v * lanes; k < (v + 1) * lanes; ++k) longest = at_least(longest, count[k]);
        if (longest > whole) drop_below_bounds(v);
        longest = 0;
        for (int64_t k = v * lanes; k < (v + 1) * lanes; ++k) longest = at_least(longest, count[k] + fresh[k]);
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t k = v * lanes + lane;
            T* list = values + v * capacity * lanes + lane;
            for (int64_t i = 0; i < fresh[k]; ++i) list[(count[k] + i) * lanes] = news[k * room + i];
            count[k] += fresh[k];
            fresh[k] = 0;
            for (int64_t i = count[k]; i < longest; ++i) list[i * lanes] = -kInf<T>;
        }
        return longest;
    }

    // The diagonal and lanes without a column take no further part.
    void block_lanes(int64_t v) {
        for (int64_t lane = 0; lane < lanes; ++lane)
            if (start(v) + lane == j || start(v) + lane >= classes) bounds[v * lanes + lane] = kInf<T>;
    }

    // Keeps `rank` differences: those above the bound, filled up with the bound itself.
    void drop_below_bounds(int64_t v) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
            T* list = values + v * capacity * lanes + lane;
            const T bound = bounds[v * lanes + lane];
            int64_t kept = 0;
            for (int64_t i = 0; i < count[v * lanes + lane]; ++i)
                if (list[i * lanes] > bound) list[kept++ * lanes] = list[i * lanes];
            for (; kept < rank; ++kept) list[kept * lanes] = bound;
            count[v * lanes + lane] = static_cast<int32_t>(kept);
        }
    }

    // Of the pruning test, with these bounds for the gaps, for the columns in each lane.
    Vec<T> weakest(const T* offsets) const {
        Vec<T> least = broadcast(kInf<T>);
        for (int64_t v = 0; v < vectors; ++v) least = min(least, load(bounds + v * lanes) + load(offsets + start(v)));
        return safe_minima<T>(least);
    }

    void write(T* gaps) const {
        for (int64_t v = 0; v < vectors; ++v)
            for (int64_t lane = 0; lane < at_most(lanes, classes); ++lane)
                if (start(v) + lane != j) gaps[j * classes + start(v) + lane] = bounds[v * lanes + lane];
    }
};

}  // namespace tacfast::cpu::TACFAST_ISA
