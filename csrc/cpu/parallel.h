// Tasks on several threads, without a result ever showing how many there were.
#pragma once

#include <cstdint>

#include "cpu/interrupt.h"

namespace resque::cpu {

// Runs work(context) on `threads` threads at once and returns when all are done.
void on_threads(int threads, void (*work)(void*), void* context);

// Runs task(0) .. task(tasks - 1), each once, on at most `threads` threads. Tasks write to places of
// their own, so that which thread runs one never shows. A team starts in some 5 us, so a thread is
// worth it from `bytes` of about 256 KB (25 us of reading) on. Throws Stopped where the call was to stop.
template <typename Task>
void parallel_for(int64_t tasks, int threads, int64_t bytes, const Task& task) {
    constexpr int64_t kBytesPerThread = int64_t{1} << 18;
    const int64_t fed = bytes / kBytesPerThread, most = tasks < fed ? tasks : fed;
    struct Context {
        const Task& task;
        int64_t tasks, next;
        Call* call;
    } context{task, tasks, 0, this_call};
    const auto work = [](void* shared) {
        auto& c = *static_cast<Context*>(shared);
        const CallScope scope(c.call);
        for (int64_t i; (i = __atomic_fetch_add(&c.next, 1, __ATOMIC_RELAXED)) < c.tasks && !stopped();) {
            c.task(i);
        }
    };
    on_threads(static_cast<int>(most < threads ? most : threads), work, &context);
    if (stopped()) throw Stopped{};
}

// The same, for tasks that lie side by side in memory: those that run at the same time are far apart, and
// a thread's next task mostly is the one behind its last.
template <typename Task>
void parallel_apart(int64_t tasks, int threads, int64_t bytes, const Task& task) {
    const int64_t each = (tasks + threads - 1) / threads;
    parallel_for(each * threads, threads, bytes, [&](int64_t i) {
        const int64_t at = i % threads * each + i / threads;
        if (at < tasks) task(at);
    });
}

}  // namespace resque::cpu
