#include "cpu/parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <system_error>
#include <thread>
#include <vector>

namespace resque::cpu {
namespace {

// The entry of OpenMP's runtime for a parallel region: work(context) on each of `threads` threads.
using Team = void (*)(void (*work)(void*), void* context, unsigned threads, unsigned flags);

// torch's OpenMP runtime, where the process has one, found by name and so without linking any. Its
// threads are there already, and after an op of torch they keep spinning for a while: threads of our
// own would share the processors with them.
Team find_team() { return reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel")); }

// Whether this process is the child of a fork: it has the runtime's team, as its parent used it, but none
// of the team's threads, and a parallel region would wait for them for ever.
bool forked = false;
const int watch_forks = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

void on_threads(int threads, void (*work)(void*), void* context) {
    if (threads <= 1) return work(context);
    static const Team team = find_team();
    if (team && !forked) return team(work, context, static_cast<unsigned>(threads), 0);
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) {
        try {
            others.emplace_back(work, context);
        } catch (const std::system_error&) {
            break;  // the threads there are do it all
        }
    }
    work(context);
    for (auto& thread : others) thread.join();
}

}  // namespace resque::cpu
