// How a launch of tasks is cut, for the class-wise and the per-sample QPs alike.
#pragma once

#include <cstdint>

#include "core/class_qp.h"

namespace tacfast::cuda {

constexpr int64_t kSharedBytes = 46 << 10;  // of the 48 KB of shared memory that need no attribute
constexpr int64_t kMostBytes = 1 << 30;     // of a workspace, where more than one team fits into it
constexpr int64_t kThoroughTasks = 132;

constexpr int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// The workspace holds the far memory of each team, and the near one where it is not shared. It depends on nothing but
// the sizes, so that it fits whatever device it is used on.
struct Plan {
    int64_t teams;
    int64_t near, far;  // doubles of one team
    bool shared;        // whether the near memory is shared memory

    constexpr int64_t team_doubles() const { return far + (shared ? 0 : near); }
    constexpr int64_t bytes() const { return teams * team_doubles() * int64_t(sizeof(double)); }

    // Of up to `most` teams, `per_block` of them in a block; quick ones are `quick` at most.
    template <class Task>
    static Plan of(int64_t classes, int64_t dim, int64_t most, int64_t quick, int64_t per_block) {
        Plan p{0, Task::near_size(classes, dim), Task::far_size(classes, dim), false};
        p.shared = per_block * p.near * int64_t(sizeof(double)) <= kSharedBytes;
        const int64_t fitting = at_least(1, kMostBytes / (p.team_doubles() * int64_t(sizeof(double))));
        p.teams = at_most(at_most(most, fitting), Task::kEffort == core::Effort::quick ? quick : kThoroughTasks);
        return p;
    }
};

}  // namespace tacfast::cuda
