#include "cpu/threads.h"

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace tacfast::cpu {

void parallel_for(int threads, int64_t tasks, void (*body)(void*, int, int64_t), void* context) {
    std::atomic<int64_t> next{0};
    auto work = [&](int worker) {
        for (int64_t task = next++; task < tasks; task = next++) body(context, worker, task);
    };
    std::vector<std::thread> others;
    const int64_t workers = threads < tasks ? threads : tasks;
    others.reserve(workers > 0 ? static_cast<size_t>(workers) : 0);
    try {
        for (int worker = 1; worker < workers; ++worker) others.emplace_back(work, worker);
    } catch (const std::system_error&) {
        // The system refuses another thread: those that run share the work.
    }
    work(0);
    for (std::thread& other : others) other.join();
}

}  // namespace tacfast::cpu
