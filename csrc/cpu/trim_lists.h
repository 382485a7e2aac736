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

// Rows of a class that its lists are begun with, and room for what comes after that.
inline int64_t rows_at_first(int64_t rank, int64_t rows_of_class) {
    return at_most(rows_of_class, at_least(4 * rank, 1024));
}
inline int64_t room_for_news(int64_t rank) { return at_least(64, rank / 2); }

// The largest differences L[i, j] - L[i, k] so far, for one class j and all k: a vector of lists per vector
// of k. A list is what exceeds its bound, filled up with the bound to `rank` values, and after those the news.
template <class T, bool narrow>
struct Lists {
    int64_t j, classes, vectors, rank, room;
    T* bounds;       // (vectors, lanes) `rank` differences are at least so large; +inf where k = j or k >= C
    int32_t* fresh;  // (vectors, lanes) how many are waiting in the news
    bool* stale;     // (vectors,) the bounds are older than the lists or the news
    T* values;       // (vectors, rank + room, lanes) the lists
    T* news;         // (vectors, lanes, room) waiting for the lists, contiguous because they come one by one

    static constexpr int lanes = kLanes<T>;

    static int64_t bytes(int64_t classes, int64_t trim_rank) {
        const int64_t width = vectors_per_row<T>(classes) * lanes, room = room_for_news(trim_rank);
        return padded<Lists>(1) + padded<T>(width) + padded<int32_t>(width) + padded<bool>(width / lanes) +
               padded<T>(width * (trim_rank + room)) + padded<T>(width * room);
    }
    // Of the memory that begin() needs besides.
    static int64_t first_bytes(int64_t classes, int64_t trim_rank, int64_t rows) {
        return padded<T>(vectors_per_row<T>(classes) * lanes * rows_at_first(trim_rank, rows));
    }

    Lists(char* memory, int64_t cls, int64_t columns, int64_t trim_rank)
        : j(cls),
          classes(columns),
          vectors(vectors_per_row<T>(columns)),
          rank(trim_rank),
          room(room_for_news(trim_rank)) {
        const int64_t width = vectors * lanes;
        take(memory, bounds, width);
        take(memory, fresh, width);
        take(memory, stale, vectors);
        take(memory, values, width * (rank + room));
        take(memory, news, width * room);
        for (int64_t k = 0; k < width; ++k) fresh[k] = 0;
    }

    int64_t start(int64_t v) const { return vector_start<T>(v * lanes, classes); }
    T* list(int64_t v) const { return values + v * (rank + room) * lanes; }

    Vec<T> differences(const T* row, int64_t v) const {
        return broadcast(row[j]) - load_columns<narrow>(row, start(v), classes, kInf<T>) + Vec<T>{};  // + 0: no -0
    }

    // Begins the lists with so many chosen rows; memory: first_bytes(...).
    void begin(const int64_t* rows, const int32_t* chosen, int64_t number, char* memory) {
        T* first;  // (vectors, number, lanes)
        take(memory, first, vectors * number * lanes);
        for (int64_t i = 0; i < number; ++i)
            for (int64_t v = 0; v < vectors; ++v)
                store(first + (v * number + i) * lanes, differences(reinterpret_cast<const T*>(rows[chosen[i]]), v));
        for (int64_t v = 0; v < vectors; ++v) raise_to(v, first + v * number * lanes, number, broadcast(-kInf<T>));
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
        const int64_t number = rank + take_news(v);
        raise_to(v, list(v), number, load(bounds + v * lanes));
    }

    // Makes the order statistic of so many differences the bound, and the list of what exceeds it. They may be the
    // list itself.
    void raise_to(int64_t v, const T* from, int64_t number, Vec<T> bottom) {
        const Vec<T> bound = select<T>([=](int64_t i) { return load(from + i * lanes); }, number, rank, bottom);
        int32_t count[lanes] = {};
        T* to = list(v);
        for (int64_t i = 0; i < number; ++i) {
            const Vec<T> value = load(from + i * lanes);
            T spilled[lanes];
            store(spilled, value);
            for (uint32_t bits = greater<T>(value, bound); bits != 0; bits &= bits - 1) {
                const int lane = __builtin_ctz(bits);
                to[count[lane]++ * lanes + lane] = spilled[lane];
            }
        }
        store(bounds + v * lanes, bound);
        for (int lane = 0; lane < lanes; ++lane)
            for (; count[lane] < rank; ++count[lane]) to[count[lane] * lanes + lane] = bounds[v * lanes + lane];
        stale[v] = false;
        block_lanes(v);
    }

    // Appends the news to the lists, which are filled up with -inf to the length of the longest; by how much.
    int64_t take_news(int64_t v) {
        int64_t most = 0;
        for (int64_t k = v * lanes; k < (v + 1) * lanes; ++k) most = at_least(most, fresh[k]);
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t k = v * lanes + lane;
            T* to = list(v) + rank * lanes + lane;
            for (int64_t i = 0; i < most; ++i) to[i * lanes] = i < fresh[k] ? news[k * room + i] : -kInf<T>;
            fresh[k] = 0;
        }
        return most;
    }

    // The diagonal and lanes without a column take no further part.
    void block_lanes(int64_t v) {
        for (int64_t lane = 0; lane < lanes; ++lane)
            if (start(v) + lane == j || start(v) + lane >= classes) bounds[v * lanes + lane] = kInf<T>;
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
