// The gap matrix by tiles, as a thread block works on it.
//
// A tile is a few classes. A pair of tiles (j, k), j <= k, is folded over all rows in stages: some rows of both tiles
// are copied to shared memory while the ones before are folded into registers. A lane owns a micro-tile of class pairs
// and, since there are more lanes than micro-tiles, every fifth or eighth row. One subtraction serves both signs of a
// class pair: its maximum is a gap, its minimum the negative of the opposite one. The stages of all pairs of tiles are
// numbered in one sequence, of which every block takes an equal share; what the blocks find is merged by raising the
// gaps in place. Maxima do not round, so that neither the shares nor the order of the blocks change a bit.
#pragma once

#include "core/config.h"

TACFAST_CORE_BEGIN

constexpr int kGapThreads = 128;              // lanes of a block
constexpr int kTileSide = 5;                  // micro-tiles along a tile; odd, see MicroPair
constexpr int kTileSteps = 6;                 // rows of a stage that one lane folds
constexpr int kTilePacks = 2 * kTileSide;     // packs in a tile's share of a row
constexpr int kCopiers = 12 * kTilePacks;     // lanes that copy packs: 12 rows of one tile at a time, or 6 of two
constexpr int kStagePacks = 60 * kTilePacks;  // of the larger stage: 30 rows of two tiles

// What is copied at once.
template <class T>
struct alignas(16) Pack {
    static constexpr int size = 16 / static_cast<int>(sizeof(T));
    T entry[size];
};

// A lane's classes are two packs of a tile, so that neighbouring lanes read neighbouring packs.
template <class T>
constexpr int kMicro = 2 * Pack<T>::size;
template <class T>
constexpr int kTileClasses = kTileSide * kMicro<T>;

// A tile with itself needs each unordered pair of micro-tiles once, which leaves lanes for more rows. All divisors are
// constants.
struct PairShape {
    static constexpr int kPairs = kTileSide * kTileSide, kOwnPairs = kTileSide * (kTileSide + 1) / 2;
    static constexpr int kGroups = kGapThreads / kPairs, kOwnGroups = kGapThreads / kOwnPairs;
    bool diagonal;

    TACFAST_HD int micro_pairs() const { return diagonal ? kOwnPairs : kPairs; }
    TACFAST_HD int groups() const { return diagonal ? kOwnGroups : kGroups; }  // of lanes; each has rows of its own
    TACFAST_HD int group(int lane) const { return diagonal ? lane / kOwnPairs : lane / kPairs; }
    TACFAST_HD int lanes() const { return micro_pairs() * groups(); }
    TACFAST_HD int rows() const { return kTileSteps * groups(); }  // of a stage
    TACFAST_HD int whole_groups(int left) const {
        return diagonal ? (left + kOwnGroups - 1) / kOwnGroups * kOwnGroups : (left + kGroups - 1) / kGroups * kGroups;
    }
    TACFAST_HD int packs() const { return diagonal ? kTilePacks : 2 * kTilePacks; }
    TACFAST_HD int second_tile() const { return packs() - kTilePacks; }  // where it starts in a row
    TACFAST_HD int copied_row(int copier) const { return diagonal ? copier / kTilePacks : copier / (2 * kTilePacks); }
    TACFAST_HD int copied_at_once() const { return diagonal ? kCopiers / kTilePacks : kCopiers / (2 * kTilePacks); }
};
static_assert(kTileSteps * PairShape::kGroups * 2 * kTilePacks <= kStagePacks &&
                  kTileSteps * PairShape::kOwnGroups * kTilePacks <= kStagePacks && kCopiers <= kGapThreads,
              "a stage fits, and a lane copies for one copier");

// The micro-tiles of a pair, by number. All come round by their distance modulo the odd side, so that the first
// kTileSide * (kTileSide + 1) / 2 numbers are every unordered pair once.
struct MicroPair {
    int j, k;
};
TACFAST_HD MicroPair micro_pair(int number) {
    const int j = number % kTileSide;
    return {j, (j + number / kTileSide) % kTileSide};
}

// Where an entry of a micro-tile is in its tile.
template <class T>
TACFAST_HD int tile_class(int micro_tile, int entry) {
    constexpr int size = Pack<T>::size;
    return (entry / size * kTileSide + micro_tile) * size + entry % size;
}

// Where a stage belongs.
struct GapStage {
    int j, k;    // tiles
    int number;  // among the pair's stages
};

// What to fold, and the sequence of stages: tile by tile j, first with itself, then with every later tile.
template <class T>
struct GapFold {
    const T* logits;     // (n, C)
    int64_t n;           // rows
    int64_t row_stride;  // of logits
    int classes;         // C

    TACFAST_HD int tiles() const { return (classes + kTileClasses<T> - 1) / kTileClasses<T>; }
    TACFAST_HD int stages_of_pair(bool diagonal) const {
        const int rows = PairShape{diagonal}.rows();
        return static_cast<int>((n + rows - 1) / rows);
    }
    TACFAST_HD int64_t stages_before(int64_t j) const {
        return j * stages_of_pair(true) + (j * (tiles() - 1) - j * (j - 1) / 2) * stages_of_pair(false);
    }
    TACFAST_HD int64_t stages() const { return stages_before(tiles()); }

    TACFAST_HD GapStage stage(int64_t number) const {
        int j = 0;
        for (int above = tiles(); above - j > 1;) {
            const int middle = (j + above) / 2;
            (stages_before(middle) <= number ? j : above) = middle;
        }
        number -= stages_before(j);
        const int own = stages_of_pair(true), others = stages_of_pair(false);
        if (number < own) return {j, j, static_cast<int>(number)};
        number -= own;
        return {j, j + 1 + static_cast<int>(number / others), static_cast<int>(number % others)};
    }
};

// What the lanes of a block share.
template <class T>
struct GapMemory {
    static constexpr int kPitch = kTilePacks + 1;  // away from bank conflicts
    union {
        Pack<T> stage[2][kStagePacks];
        Pack<T> merged[2][kTileClasses<T>][kPitch];  // once all stages are folded: the gaps (j, k) and (k, j)
    };
    bool bad[kCopiers][Pack<T>::size];  // whether a copier saw a logit that is not finite
    bool spoiled[kTileClasses<T>];      // whether a class is newly so
};

// The largest and the smallest differences so far between the classes of a few packs and those of some others.
template <class T, int left_packs, int right_packs>
struct PairTile {
    static constexpr int size = Pack<T>::size, kLeft = left_packs * size, kRight = right_packs * size;
    T most[kLeft][kRight];   // by the class on the left
    T least[kRight][kLeft];  // by the class on the right

    TACFAST_HD void clear() {
        for (int a = 0; a < kLeft; ++a)
            for (int b = 0; b < kRight; ++b) {
                most[a][b] = -INFINITY;
                least[b][a] = INFINITY;
            }
    }

    // Folds in one row, whose packs are `step` apart from these on. A NaN never wins.
    TACFAST_HD void fold(const Pack<T>* first, const Pack<T>* second, int step) {
        Pack<T> left[left_packs], right[right_packs];
        for (int p = 0; p < left_packs; ++p) left[p] = first[p * step];
        for (int p = 0; p < right_packs; ++p) right[p] = second[p * step];
        for (int a = 0; a < kLeft; ++a)
            for (int b = 0; b < kRight; ++b) {
                const T difference = left[a / size].entry[a % size] - right[b / size].entry[b % size];
                most[a][b] = std::fmax(most[a][b], difference);
                least[b][a] = std::fmin(least[b][a], difference);
            }
    }
};
template <class T>
using MicroTile = PairTile<T, 2, 2>;

// Raises one gap, also while other blocks raise it: floating-point numbers of one sign are ordered as their bits are.
template <class T, class Cells>
TACFAST_HD void raise_cell(const Cells& cells, int64_t at, T value) {
    if (value >= 0) {
        cells.raise_signed(at, value);
    } else {
        cells.lower_unsigned(at, value);
    }
}

// The same if it is needed. old: what was read there, by now perhaps more. A gap that is NaN stays NaN.
template <class T, class Cells>
TACFAST_HD void raise_gap(const Cells& cells, int64_t at, T old, T value) {
    if (value > old) raise_cell(cells, at, value);
}

// The work of one block. Copy: how a pack gets to shared memory, wait() until this lane's packs are there. Cells: the
// gaps. per_lane: how many micro-tiles a lane has; 1 on a block of kGapThreads lanes.
template <class T, int per_lane, class Team, class Copy, class Cells>
struct GapBlock {
    const Team& team;
    const GapFold<T>& fold;
    GapMemory<T>& memory;
    const Copy& copy;
    const Cells& cells;

    // Folds the stages first, ..., last - 1 of the sequence into the gaps.
    TACFAST_HD void run(int64_t first, int64_t last) const {
        while (first < last) {
            const GapStage start = fold.stage(first);
            const int left = fold.stages_of_pair(start.j == start.k) - start.number;
            const int count = left < last - first ? left : static_cast<int>(last - first);
            fold_pair(start, count);
            first += count;
        }
    }

    TACFAST_HD void fold_pair(const GapStage& start, int count) const {
        const PairShape shape{start.j == start.k};
        MicroTile<T> tiles[per_lane];
        for (MicroTile<T>& tile : tiles) tile.clear();
        team.each(kCopiers, [&](int i) {
            for (bool& bad : memory.bad[i]) bad = false;
        });
        copy_stage(shape, start, start.number, memory.stage[0]);
        for (int s = 0; s < count; ++s) {
            copy.wait();
            team.sync();  // this stage is there, and the other buffer is no longer read
            if (s + 1 < count) copy_stage(shape, start, start.number + s + 1, memory.stage[(s + 1) & 1]);
            if (shape.diagonal) inspect(memory.stage[s & 1], rows_of(shape, start.number + s));
            fold_stage(shape, rows_of(shape, start.number + s), memory.stage[s & 1], tiles);
        }
        team.sync();
        merge_groups(shape, tiles);
        raise(shape, start);
        if (shape.diagonal) spoil(start.j);
        team.sync();
    }

    // Rows of a stage, a multiple of the groups: the last row of all is repeated.
    TACFAST_HD int rows_of(const PairShape& shape, int stage) const {
        const int64_t left = fold.n - static_cast<int64_t>(stage) * shape.rows();
        return left >= shape.rows() ? shape.rows() : shape.whole_groups(static_cast<int>(left));
    }

    TACFAST_HD void copy_stage(const PairShape& shape, const GapStage& pair, int stage, Pack<T>* to) const {
        const int rows = rows_of(shape, stage);
        const int64_t first = static_cast<int64_t>(stage) * shape.rows();
        const int last = static_cast<int>(fold.n - first < rows ? fold.n - first : rows) - 1;
        team.each(kCopiers, [&](int i) {
            int row = shape.copied_row(i);
            const int pack = i - row * shape.packs();
            const int column = pack < kTilePacks ? pair.j * kTileClasses<T> + pack * Pack<T>::size
                                                 : pair.k * kTileClasses<T> + (pack - kTilePacks) * Pack<T>::size;
            const int there = column < fold.classes ? fold.classes - column : 0;
            const T* from = fold.logits + first * fold.row_stride + (there > 0 ? column : 0);
            for (; row < rows; row += shape.copied_at_once())
                copy(to + row * shape.packs() + pack, from + (row < last ? row : last) * fold.row_stride, there);
        });
    }

    // Every class is in one tile, and every row of that passes here once.
    TACFAST_HD void inspect(const Pack<T>* stage, int rows) const {
        team.each(kCopiers, [&](int i) {
            for (int at = i; at < rows * kTilePacks; at += kCopiers) {
                const Pack<T> pack = stage[at];
                T zeros = 0;
                for (const T& logit : pack.entry) zeros += logit * T(0);
                if (zeros == 0) continue;
                for (int e = 0; e < Pack<T>::size; ++e)
                    if (!(pack.entry[e] * T(0) == T(0))) memory.bad[i][e] = true;
            }
        });
    }

    TACFAST_HD void fold_stage(const PairShape& shape, int rows, const Pack<T>* stage, MicroTile<T>* tiles) const {
        team.each(shape.lanes(), [&](int i) {
            const int group = shape.group(i);
            const MicroPair pair = micro_pair(i - group * shape.micro_pairs());
            const int step = shape.groups() * shape.packs();
            const Pack<T>* const end = stage + rows * shape.packs();
            const Pack<T>* row = stage + group * shape.packs();
            const int second = shape.second_tile() + pair.k;
#ifdef __CUDA_ARCH__
#pragma unroll 1
#endif
            for (; row < end; row += step) own(tiles, i).fold(row + pair.j, row + second, kTileSide);
        });
    }

    // Register arrays need an index that the compiler knows.
    TACFAST_HD MicroTile<T>& own(MicroTile<T>* tiles, int i) const {
        return tiles[per_lane == 1 ? 0 : i / team.lanes()];
    }

    // One group after the other, so that no two lanes write the same place. Both orders of a tile with itself are one.
    TACFAST_HD void merge_groups(const PairShape& shape, MicroTile<T>* tiles) const {
        const int second = shape.diagonal ? 0 : 1;
        team.each(2 * kTileClasses<T>, [&](int row) {
            for (Pack<T>& pack : memory.merged[row / kTileClasses<T>][row % kTileClasses<T>])
                for (T& gap : pack.entry) gap = -INFINITY;
        });
        team.sync();
        for (int group = 0; group < shape.groups(); ++group) {
            team.each(shape.lanes(), [&](int i) {
                if (shape.group(i) != group) return;
                const MicroPair pair = micro_pair(i - group * shape.micro_pairs());
                const MicroTile<T>& tile = own(tiles, i);
                for (int e = 0; e < kMicro<T>; ++e) {
                    merge(tile.most[e], T(1), memory.merged[0][tile_class<T>(pair.j, e)] + pair.k);
                    merge(tile.least[e], T(-1), memory.merged[second][tile_class<T>(pair.k, e)] + pair.j);
                }
            });
            team.sync();
        }
    }

    // Part of a row of gaps.
    TACFAST_HD void merge(const T* differences, T sign, Pack<T>* to) const {
        constexpr int size = Pack<T>::size;
        for (int half = 0; half < 2; ++half) {
            Pack<T> gaps = to[half * kTileSide];
            for (int e = 0; e < size; ++e)
                gaps.entry[e] = std::fmax(gaps.entry[e], sign * differences[half * size + e]);
            to[half * kTileSide] = gaps;
        }
    }

    TACFAST_HD void raise(const PairShape& shape, const GapStage& pair) const {
        raise_tile(memory.merged[0], pair.j, pair.k);
        if (!shape.diagonal) raise_tile(memory.merged[1], pair.k, pair.j);
    }

    // Reads the gaps of a pack before it writes to any.
    TACFAST_HD void raise_tile(const Pack<T> (*merged)[GapMemory<T>::kPitch], int tile, int other) const {
        constexpr int size = Pack<T>::size;
        team.each(kCopiers, [&](int i) {
            const int pack = i % kTilePacks, k = other * kTileClasses<T> + pack * size;
            const int there = fold.classes - k;
            for (int row = i / kTilePacks; row < kTileClasses<T>; row += kCopiers / kTilePacks) {
                const int j = tile * kTileClasses<T> + row;
                if (j >= fold.classes) return;
                const Pack<T> found = merged[row][pack];
                const int64_t at = static_cast<int64_t>(j) * fold.classes + k;
                T old[size];
                for (int e = 0; e < size; ++e) old[e] = e < there ? cells.load(at + e) : T(INFINITY);
                for (int e = 0; e < size; ++e) raise_gap(cells, at + e, old[e], found.entry[e] + T(0));  // + 0: no -0
            }
        });
    }

    // Makes NaN of all gaps of the classes that have a logit which is not finite.
    TACFAST_HD void spoil(int tile) const {
        constexpr int width = kTileClasses<T>;
        const int64_t classes = fold.classes;
        team.each(width, [&](int column) {
            const int64_t j = static_cast<int64_t>(tile) * width + column;
            bool bad = false;
            for (int i = column / Pack<T>::size; i < kCopiers; i += kTilePacks)
                bad = bad || memory.bad[i][column % Pack<T>::size];
            // Where the diagonal is NaN already, so is the rest, or will be when its block is done.
            memory.spoiled[column] = bad && !std::isnan(cells.load(j * classes + j));
        });
        team.sync();
        for (int column = 0; column < width; ++column) {
            if (!memory.spoiled[column]) continue;
            const int64_t j = static_cast<int64_t>(tile) * width + column;
            team.each(fold.classes, [&](int k) {
                cells.raise_signed(j * classes + k, T(NAN));
                cells.raise_signed(k * classes + j, T(NAN));
            });
        }
    }
};

TACFAST_CORE_END
