// What the CPU kernels share: threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>


namespace resque::cpu {

// Runs task(0) .. task(tasks - 1), each once, on at most `threads` threads. Threads are started and
// joined here: no pool, so nothing that a fork could leave broken. A start costs about 15 us, so a
// thread is worth it from `bytes` of about 1 MB (100 us of reading) on. Tasks write to places of their
// own: which thread runs one never shows in a result.
template <typename Task>
void parallel_for(int64_t tasks, int threads, int64_t bytes, const Task& task) {
    constexpr int64_t kBytesPerThread = int64_t{1} << 20;
    const int64_t useful = std::min<int64_t>({tasks, threads, bytes / kBytesPerThread});
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i);
    };
    std::vector<std::thread> others;
    for (int64_t t = 1; t < useful; ++t) {
        try {
            others.emplace_back(work);
        } catch (const std::system_error&) {
            break;  // the threads there are do it all
        }
    }
    work();
    for (auto& thread : others) thread.join();
}

}  // namespace resque::cpu
