// The gap matrix from latents, as a thread block works on it: the logits of a few rows and of all classes are
// multiplied into shared memory and folded while they are there.
//
// The product: a lane owns a square of logits, rows of one group against classes of another. It runs in stages: a few
// columns of the block's latents and of all weights are copied to shared memory while the ones before are multiplied.
// Every logit is one chain of fused multiply-adds in the order of the columns.
//
// The fold: a unit is a few classes against twice as many others. One subtraction serves both signs of a class pair.
// The block raises cells that it shares with all others, in an order that suits the lanes, and the gaps are read off
// these in the end. Maxima do not round, so that neither the tiles nor the order of the blocks change a bit.
#pragma once

#include "core/gap_tile.h"

TACFAST_CORE_BEGIN

constexpr int kFusedThreads = 256;  // lanes of a block
constexpr int kDepthPacks = 4;      // columns of a stage
constexpr int kLeastRowGroups = 8;  // of a tile
constexpr int kMostRowGroups = 32;  //

// With more classes there are too few rows in a tile for an efficient product.
template <class T>
constexpr int kFusedClasses = kFusedThreads / kLeastRowGroups * kMicro<T>;

// A matrix in shared memory, in groups of kMicro<T> rows. With a pack between the groups, lanes that read the same row
// of neighbouring groups use different banks.
template <class T>
struct Grouped {
    int packs;  // of a row

    TACFAST_HD int pitch() const { return kMicro<T> * packs + 1; }
    TACFAST_HD int at(int row, int pack) const { return row / kMicro<T> * pitch() + row % kMicro<T> * packs + pack; }
    TACFAST_HD int size(int groups) const { return groups * pitch(); }
};

// A unit of the fold: the classes of pack `left` against those of packs 2 * right and 2 * right + 1. It serves all
// pairs of these, also the few that another unit has the other way round.
struct FusedUnit {
    int left, right;
};

// How a block is cut.
template <class T>
struct FusedShape {
    static constexpr int kCells = 4 * Pack<T>::size * Pack<T>::size;  // of a unit
    static constexpr int kTogether = 32;                              // units whose cells are mixed

    int classes;    // C
    int groups;     // of kMicro<T> classes
    int row_shift;  // log2 of the groups of kMicro<T> rows

    static TACFAST_HD FusedShape of(int classes) {
        FusedShape shape{classes, (classes + kMicro<T> - 1) / kMicro<T>, 0};
        while (2 * shape.row_groups() <= kMostRowGroups && 2 * shape.squares() <= kFusedThreads) ++shape.row_shift;
        return shape;
    }

    TACFAST_HD int row_groups() const { return 1 << row_shift; }
    TACFAST_HD int rows() const { return kMicro<T> * row_groups(); }
    TACFAST_HD int width() const { return kMicro<T> * groups; }  // classes and what pads them
    TACFAST_HD int squares() const { return groups * row_groups(); }

    TACFAST_HD Grouped<T> logits() const { return {2 * groups}; }
    TACFAST_HD Grouped<T> stage() const { return {kDepthPacks}; }
    TACFAST_HD int stage_packs() const { return stage().size(row_groups() + groups); }
    TACFAST_HD int memory_packs() const {
        const int tile = logits().size(row_groups());
        return tile > 2 * stage_packs() ? tile : 2 * stage_packs();
    }

    // The triangle of units is folded to a rectangle of half its height: row `right` before row `groups - 1 - right`.
    TACFAST_HD int units() const { return groups * (groups + 1); }
    TACFAST_HD FusedUnit unit(int number) const {
        const int height = number / (2 * groups + 2), along = number % (2 * groups + 2), own = 2 * height + 2;
        return along < own ? FusedUnit{along, height} : FusedUnit{along - own, groups - 1 - height};
    }
    TACFAST_HD int number(const FusedUnit& unit) const {
        const bool first = 2 * unit.right < groups;
        const int height = first ? unit.right : groups - 1 - unit.right;
        return height * (2 * groups + 2) + (first ? 0 : 2 * height + 2) + unit.left;
    }
    TACFAST_HD int slices() const { return units() < kFusedThreads ? kFusedThreads / units() : 1; }  // of a tile's rows

    // Cells: entry by entry of some units, so that neighbouring lanes raise neighbouring cells; and in the end one for
    // each class, which is 0 once a logit of it was not finite. They start with all bits set.
    TACFAST_HD int64_t cell(int entry, int unit) const {
        return (static_cast<int64_t>(unit / kTogether) * kCells + entry) * kTogether + unit % kTogether;
    }
    TACFAST_HD int64_t spoiled(int j) const { return cell(0, (units() + kTogether - 1) / kTogether * kTogether) + j; }
    TACFAST_HD int64_t cells() const { return spoiled(classes); }

    // Where the gap L[i, j] - L[i, k] is.
    TACFAST_HD int64_t cell_of(int j, int k) const {
        constexpr int size = Pack<T>::size;
        const bool ahead = j / kMicro<T> <= k / kMicro<T>;
        const int left = ahead ? j : k, right = ahead ? k : j;
        const int entry = left % size * kMicro<T> + right % kMicro<T>;
        const int other = right % kMicro<T> * size + left % size;
        return cell(ahead ? entry : kCells / 2 + other, number({left / size, right / kMicro<T>}));
    }
};

// What to fold. S: the type of the latents, which is widened to T.
template <class T, class S>
struct FusedFold {
    const S* latents;       // (n, d)
    int64_t n;              // rows
    int dim;                // d
    int64_t row_stride;     // of latents
    const T* weights;       // (C, d)
    int64_t weight_stride;  // of weights
    const T* offset;        // (C,)
    FusedShape<T> shape;

    TACFAST_HD int tiles() const { return static_cast<int>((n + shape.rows() - 1) / shape.rows()); }
    TACFAST_HD int stages() const {
        constexpr int depth = kDepthPacks * Pack<T>::size;
        return (dim + depth - 1) / depth;
    }
};

// The logits of a lane so far.
template <class T>
struct Square {
    T sum[kMicro<T>][kMicro<T>];  // by row and class

    TACFAST_HD void clear() {
        for (auto& row : sum)
            for (T& one : row) one = 0;
    }

    // Multiplies in one stage, from the first row of a group of latents and of one of weights on.
    TACFAST_HD void multiply(const Pack<T>* latents, const Pack<T>* weights) {
#ifdef __CUDA_ARCH__
#pragma unroll 1
#endif
        for (int p = 0; p < kDepthPacks; ++p) {
            constexpr int half = kMicro<T> / 2;  // as many rows as registers hold
            for (int top = 0; top < kMicro<T>; top += half) {
                Pack<T> left[half];
                for (int y = 0; y < half; ++y) left[y] = latents[(top + y) * kDepthPacks + p];
                for (int x = 0; x < kMicro<T>; ++x) {
                    const Pack<T> right = weights[x * kDepthPacks + p];
                    for (int e = 0; e < Pack<T>::size; ++e)
                        for (int y = 0; y < half; ++y)
                            sum[top + y][x] = std::fma(left[y].entry[e], right.entry[e], sum[top + y][x]);
                }
            }
        }
    }
};

// The work of one block. Copy: how packs get to shared memory, wait() until those of this lane are there. Cells: see
// FusedShape. per_lane: how many squares a lane has; 1 on a block of kFusedThreads lanes.
template <class T, class S, int per_lane, class Team, class Copy, class Cells>
struct FusedBlock {
    const Team& team;
    const FusedFold<T, S>& fold;
    Pack<T>* const memory;  // memory_packs(), shared
    const Copy& copy;
    const Cells& cells;
    const FusedShape<T>& shape = fold.shape;

    // Folds every step-th tile from this one on.
    TACFAST_HD void run(int tile, int step) const {
        for (; tile < fold.tiles(); tile += step) {
            multiply(tile);
            team.sync();
            fold_logits();
            team.sync();
        }
    }

    // Leaves the logits of a tile in shared memory. The last row of all is repeated.
    TACFAST_HD void multiply(int tile) const {
        Square<T> squares[per_lane];
        for (Square<T>& square : squares) square.clear();
        copy_stage(tile, 0);
        for (int s = 0; s < fold.stages(); ++s) {
            copy.wait();
            team.sync();  // this stage is there, and the other buffer is no longer read
            if (s + 1 < fold.stages()) copy_stage(tile, s + 1);
            const Pack<T>* const stage = buffer(s);
            team.each(shape.squares(), [&](int i) {
                own(squares, i)
                    .multiply(stage + row_group(i) * shape.stage().pitch(),
                              stage + (shape.row_groups() + class_group(i)) * shape.stage().pitch());
            });
        }
        team.sync();  // the logits are written over the stages
        team.each(shape.squares(), [&](int i) { store(own(squares, i), row_group(i), class_group(i)); });
    }

    TACFAST_HD int row_group(int i) const { return i & (shape.row_groups() - 1); }
    TACFAST_HD int class_group(int i) const { return i >> shape.row_shift; }
    TACFAST_HD Pack<T>* buffer(int stage) const { return memory + (stage & 1) * shape.stage_packs(); }

    // Register arrays need an index that the compiler knows.
    TACFAST_HD Square<T>& own(Square<T>* squares, int i) const { return squares[per_lane == 1 ? 0 : i / team.lanes()]; }

    TACFAST_HD void copy_stage(int tile, int stage) const {
        const int64_t first = static_cast<int64_t>(tile) * shape.rows(), left = fold.n - first;
        const int rows = left < shape.rows() ? static_cast<int>(left) : shape.rows();
        Pack<T>* const to = buffer(stage);
        copy_rows(fold.latents + first * fold.row_stride, fold.row_stride, rows, shape.rows(), stage, to,
                  [&](Pack<T>* pack, const S* from, int there) { copy.latents(pack, from, there); });
        copy_rows(fold.weights, fold.weight_stride, shape.classes, shape.width(), stage,
                  to + shape.stage().size(shape.row_groups()),
                  [&](Pack<T>* pack, const T* from, int there) { copy.weights(pack, from, there); });
    }

    template <class From, class One>
    TACFAST_HD void copy_rows(const From* from, int64_t stride, int rows, int padded, int stage, Pack<T>* to,
                              const One& one) const {
        team.each(padded * kDepthPacks, [&](int i) {
            const int row = i / kDepthPacks, pack = i % kDepthPacks;
            const int column = (stage * kDepthPacks + pack) * Pack<T>::size;
            const int there = column < fold.dim ? fold.dim - column : 0;
            one(to + shape.stage().at(row, pack),
                from + (row < rows ? row : rows - 1) * stride + (there > 0 ? column : 0), there);
        });
    }

    TACFAST_HD void store(const Square<T>& square, int row_group, int class_group) const {
        constexpr int size = Pack<T>::size;
        const Grouped<T> logits = shape.logits();
        for (int half = 0; half < 2; ++half) {
            const int first = (2 * class_group + half) * size;
            Pack<T> offset, zeros{};
            for (int e = 0; e < size; ++e) offset.entry[e] = fold.offset[first + e < shape.classes ? first + e : 0];
            for (int y = 0; y < kMicro<T>; ++y) {
                Pack<T> pack;
                for (int e = 0; e < size; ++e) {
                    pack.entry[e] = square.sum[y][half * size + e] + offset.entry[e];
                    zeros.entry[e] += pack.entry[e] * T(0);
                }
                memory[row_group * logits.pitch() + y * logits.packs + 2 * class_group + half] = pack;
            }
            for (int e = 0; e < size; ++e)
                if (!(zeros.entry[e] == 0) && first + e < shape.classes) spoil(shape.spoiled(first + e));
        }
    }

    TACFAST_HD void spoil(int64_t at) const {
        if (cells.load(at) != 0) cells.raise_signed(at, T(0));
    }

    TACFAST_HD void fold_logits() const {
        const int units = shape.units(), slices = shape.slices();
        const Grouped<T> logits = shape.logits();
        team.each(units * slices, [&](int i) {
            const int slice = i / units, number = i - slice * units;
            const FusedUnit unit = shape.unit(number);
            PairTile<T, 1, 2> tile;
            tile.clear();
#ifdef __CUDA_ARCH__
#pragma unroll 1
#endif
            for (int row = slice; row < shape.rows(); row += slices) {
                const Pack<T>* const packs = memory + logits.at(row, 0);
                tile.fold(packs + unit.left, packs + 2 * unit.right, 1);
            }
            for (int a = 0; a < Pack<T>::size; ++a) raise<kMicro<T>>(tile.most[a], T(1), a * kMicro<T>, number);
            for (int b = 0; b < kMicro<T>; ++b)
                raise<Pack<T>::size>(tile.least[b], T(-1), FusedShape<T>::kCells / 2 + b * Pack<T>::size, number);
        });
    }

    // Reads some cells before it writes to any. Also what is still NaN is raised.
    template <int count>
    TACFAST_HD void raise(const T* differences, T sign, int entry, int unit) const {
        T old[count];
        for (int e = 0; e < count; ++e) old[e] = cells.load(shape.cell(entry + e, unit));
        for (int e = 0; e < count; ++e) {
            const T value = sign * differences[e] + T(0);  // + 0: no -0
            if (!(value <= old[e])) raise_cell(cells, shape.cell(entry + e, unit), value);
        }
    }
};

// The gap (j, k) after all blocks are done; gap: what it was before, of which NaN stays.
template <class T>
TACFAST_HD T fused_gap(const FusedShape<T>& shape, const T* cells, int j, int k, T gap) {
    if (cells[shape.spoiled(j)] == 0 || cells[shape.spoiled(k)] == 0) return NAN;
    const T found = cells[shape.cell_of(j, k)];
    return found > gap ? found : gap;
}

TACFAST_CORE_END
