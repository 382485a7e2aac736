// Threads for one call. No pool outlives a call, so a forked process never waits for threads it does not have.
#pragma once

#include <cstdint>

namespace tacfast::cpu {

// Calls body(context, worker, task) once for every task in [0, tasks), on at most `threads` workers, the calling
// thread among them; worker is in [0, threads). Tasks are handed out in order, to whichever worker is free.
void parallel_for(int threads, int64_t tasks, void (*body)(void* context, int worker, int64_t task), void* context);

// The same for a callable, passed by address: no allocation, no standard-library template in the callers, which are
// compiled once per instruction set.
template <class Body>
void parallel_for(int threads, int64_t tasks, Body& body) {
    parallel_for(
        threads, tasks, [](void* context, int worker, int64_t task) { (*static_cast<Body*>(context))(worker, task); },
        &body);
}

}  // namespace tacfast::cpu
