// Ctrl-C: whoever called a kernel is asked now and then whether the kernel should stop.
//
// Every thread that works for a call looks at stopped() between pieces of work, at most some tens of
// milliseconds each, and leaves its loop when that is true. The results are then incomplete, so
// parallel_for throws Stopped on the calling thread, and the launcher returns nothing.
#pragma once

#include <pthread.h>
#include <time.h>

#include <atomic>
#include <cstdint>

namespace resque::cpu {

struct Stopped {};

class Call {
   public:
    Call() : thread_(pthread_self()), last_(now()) {}
    virtual ~Call() = default;

    bool stopped() {
        if (stop_.load(std::memory_order_relaxed)) return true;
        if (!pthread_equal(pthread_self(), thread_)) return false;
        constexpr int64_t kInterval = 100'000'000;  // ns: asking may have to wait for a lock
        const int64_t time = now();
        if (time - last_ < kInterval) return false;
        if (should_stop()) stop_.store(true, std::memory_order_relaxed);
        last_ = now();
        return stop_.load(std::memory_order_relaxed);
    }

   protected:
    // On the thread that made the call, between pieces of its work.
    virtual bool should_stop() = 0;

   private:
    static int64_t now() {
#ifdef CLOCK_MONOTONIC_COARSE
        constexpr clockid_t kClock = CLOCK_MONOTONIC_COARSE;  // some 5 ns; the other takes 25 and more
#else
        constexpr clockid_t kClock = CLOCK_MONOTONIC;
#endif
        timespec time;
        clock_gettime(kClock, &time);
        return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
    }

    std::atomic<bool> stop_{false};
    pthread_t thread_;
    int64_t last_;  // when it was asked, by its own thread alone
};

// The call that this thread works for, or null where nothing can stop it.
inline thread_local Call* this_call = nullptr;

class CallScope {
   public:
    explicit CallScope(Call* call) : before_(this_call) { this_call = call; }
    ~CallScope() { this_call = before_; }
    CallScope(const CallScope&) = delete;
    CallScope& operator=(const CallScope&) = delete;

   private:
    Call* before_;
};

inline bool stopped() { return this_call && this_call->stopped(); }

}  // namespace resque::cpu
