// Trimmed gaps: for each pair of classes an order statistic of L[i, j] - L[i, k] over the rows i of class j, which are
// sorted by class first.
//
// Four steps, each of which begins when the one before is done:
//   enter_label(task, i, predicted_class(...))   for every row i
//   begin_classes(team, task, ...)               once
//   sort_row(task, i)                            for every row i
//   trim_tile(team, task, tile, ...)             for every tile
// Rows of a class are sorted in any order, which a selection does not depend on.
#pragma once

#include "core/gap_pruning.h"
#include "core/radix_select.h"

TACFAST_CORE_BEGIN

constexpr int kScanChunks = 64;    // of the classes, to find where they begin in two short walks
constexpr int kEnoughTiles = 128;  // to fill a device

template <class T>
struct TrimTask {
    const int64_t* rows;  // (n,) addresses of C logits each
    int64_t n;            // below 2^32
    int64_t classes;      // C
    double trim;          //
    uint32_t* label;      // (n,) each row's class
    uint32_t* counts;     // (C,) rows of each class; zeros to begin with
    uint32_t* ends;       // (C,) where a class ends in `sorted`; before, where its next row goes
    int64_t* sorted;      // (n,) `rows` by class
    T* gaps;              // (C, C)
};

// The class of a row, its first largest logit; always a class, even if none of the logits is a number.
template <class Team, class T>
TACFAST_HD int predicted_class(const Team& team, const T* row, int64_t classes) {
    const int found = team.largest(static_cast<int>(classes), [&](int k) { return double(row[k]); }).index;
    return found < 0 ? 0 : found;
}

template <class T>
TACFAST_HD void enter_label(const TrimTask<T>& task, int64_t i, int j) {
    task.label[i] = static_cast<uint32_t>(j);
    count_up(task.counts + j);
}

// sums: (kScanChunks,) scratch that the team shares.
template <class Team, class T>
TACFAST_HD void begin_classes(const Team& team, const TrimTask<T>& task, uint32_t* sums) {
    const int64_t share = (task.classes + kScanChunks - 1) / kScanChunks;
    auto for_each_class = [&](int chunk, const auto& f) {
        for (int64_t j = chunk * share; j < (chunk + 1) * share && j < task.classes; ++j) f(j);
    };
    team.each(kScanChunks, [&](int chunk) {
        uint32_t sum = 0;
        for_each_class(chunk, [&](int64_t j) { sum += task.counts[j]; });
        sums[chunk] = sum;
    });
    team.sync();
    team.each(kScanChunks, [&](int chunk) {
        uint32_t begin = 0;
        for (int before = 0; before < chunk; ++before) begin += sums[before];
        for_each_class(chunk, [&](int64_t j) {
            task.ends[j] = begin;
            begin += task.counts[j];
        });
    });
}

template <class T>
TACFAST_HD void sort_row(const TrimTask<T>& task, int64_t i) {
    task.sorted[count_up(task.ends + task.label[i])] = task.rows[i];
}

TACFAST_HD int64_t tile_count(int64_t classes, int width) { return (classes + width - 1) / width * classes; }

// Few classes have narrow tiles, so that there are more of them.
TACFAST_HD int tile_width(int64_t classes) {
    int width = kTallyLanes;
    while (width > 2 && tile_count(classes, width) < kEnoughTiles) width /= 2;
    return width;
}

// What a tile selects from: number(i, column) is L[i, j] - L[i, first + column] for a class j, its rows i and some k.
// It is at least 0, unless a logit of the two classes is not finite.
template <class T>
struct TrimTile {
    int64_t j;
    int64_t first;        // k of the first column
    int columns;          // how many
    int width;            // of every tile, a power of two
    int64_t n;            // rows of the class
    const int64_t* rows;  // (n,) their addresses

    TACFAST_HD TrimTile(const TrimTask<T>& task, int64_t tile)
        : j(tile % task.classes), width(tile_width(task.classes)), n(task.counts[j]) {
        first = tile / task.classes * width;
        columns = static_cast<int>(task.classes - first < width ? task.classes - first : width);
        rows = task.sorted + (task.ends[j] - task.counts[j]);
    }

    TACFAST_HD T operator()(int64_t i, int column) const {
        const T* row = reinterpret_cast<const T*>(rows[i]);
        return row[j] - row[first + column] + T(0);  // + 0: no -0
    }
};

// A class that no row is of keeps its maximum over all rows. A gap that is not a number stays so.
template <class Team, class T>
TACFAST_HD void trim_tile(const Team& team, const TrimTask<T>& task, int64_t index, RadixTile<T>& tile) {
    const TrimTile<T> numbers(task, index);
    if (numbers.n == 0) return;
    const auto rank = static_cast<uint32_t>(trim_rank(task.trim, numbers.n));
    radix_select<T>(team, numbers.n, rank, numbers.width, numbers.columns, tile, numbers);
    team.each(numbers.columns, [&](int column) {
        T& gap = task.gaps[numbers.j * task.classes + numbers.first + column];
        if (gap == gap) gap = number_of<T>(tile.found[column]);
    });
}

TACFAST_CORE_END
