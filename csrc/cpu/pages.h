// What first writing to fresh memory costs, and how to have less of it.
#pragma once

#include <sys/mman.h>

#include <cstdint>

namespace resque::cpu {

// Asks the system for pages of 2 MB where they lie wholly inside a large result: one fault each, instead
// of 512. Only advice: where there are none to be had, nothing changes.
inline void prefer_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t kHuge = uintptr_t{1} << 21;
    const uintptr_t at = reinterpret_cast<uintptr_t>(data);
    const uintptr_t begin = (at + kHuge - 1) / kHuge * kHuge, end = (at + bytes) / kHuge * kHuge;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

// Bytes to ask for where results of `results` bytes are made call after call. glibc gives memory that is
// freed back to the system, whose pages then come back one fault at a time, unless it is less than
// twice the largest block it has seen freed, blocks of 32 MB at most. So a workspace twice as large as the
// results keeps them; what is not used of it is never touched.
inline int64_t keeping_pages(int64_t workspace, int64_t results) {
    constexpr int64_t kLargest = int64_t{31} << 20;
    return 2 * results > kLargest || 2 * results < workspace ? workspace : 2 * results;
}

}  // namespace resque::cpu
