// value_histogram on the CPU.
//
// One histogram of many values: every thread counts into a table of its own, 32 bits a counter, by
// pattern as it stands, and adds what it found to the 64-bit counts, now in the order of the values.
// A pattern has four counters side by side, for four values in turn: where all values are the same, the
// increments of one counter wait for each other, some five cycles each. Measured on two cores at 16
// bits: 13 to 25 GB/s with four, 9 to 25 with one, and with eight 12 to 25, because fewer patterns stay
// in the L1. Few values, and the histograms of channels, go to the counts straight away: to clear a
// table of 1 MB and to look through it takes as long as counting 100,000 values.
//
// Infinity and NaN are patterns like any other, so a table asks nothing of a value; only when one of
// their patterns has a count are the values looked through for the first of them.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "dispatch.h"
#include "validate.h"

namespace resque::cpu {
namespace {

constexpr int64_t kFewValues = 1 << 17;        // counted without a table
constexpr int64_t kTableValues = 1 << 20;      // for each table, or it would not pay
constexpr int64_t kMostTables = 64;
constexpr int64_t kChunk = 1 << 18;            // values that a thread takes at a time
constexpr int64_t kFlush = int64_t{1} << 31;   // values that a table holds for certain
constexpr int64_t kChannels = 16;              // of a task: a line of float32

uint32_t word(Half x) { return x.bits; }
uint32_t word(BFloat x) { return x.bits; }

uint32_t word(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

// As float32, cut toward zero: a rounded value could lie beyond the bin that it belongs to. A pattern of
// one less is the next value toward zero.
uint32_t word(double x) {
    const float rounded = static_cast<float>(x);
    const bool beyond = std::fabs(static_cast<double>(rounded)) > std::fabs(x);
    return word(rounded) - (beyond && std::fabs(x) < 0x1p128 ? 1 : 0);
}

// Four counters a pattern as long as the tables then fit a usual L2.
int counters(int64_t bits) { return bits <= 16 ? 4 : 1; }

int64_t tables(int64_t n) {
    return n <= kFewValues ? 0 : std::clamp<int64_t>(n / kTableValues, 1, kMostTables);
}

// What is not finite among the values of one task or call.
struct Faults {
    int64_t count = 0, from_end = 0;

    void add_to(int64_t* status) const {
        __atomic_fetch_add(&status[kNonfiniteCount], count, __ATOMIC_RELAXED);
        int64_t most = status[kNonfiniteFromEnd];
        while (most < from_end && !__atomic_compare_exchange_n(&status[kNonfiniteFromEnd], &most,
                                                               from_end, false, __ATOMIC_RELAXED,
                                                               __ATOMIC_RELAXED)) {}
    }
};

template <typename T>
class Counter {
   public:
    explicit Counter(const ValueHistogram& args)
        : a_(args), x_(static_cast<const T*>(args.x.data)), bins_(args.x.dtype, args.bits),
          size_(args.x.n * args.x.channels * args.x.positions) {}

    // One histogram, by way of tables.
    void count_all(int threads) {
        const int64_t used = std::min<int64_t>(tables(size_), std::max(threads, 1));
        int64_t next = 0, bad = 0;
        parallel_for(used, threads, size_ * static_cast<int64_t>(sizeof(T)), [&](int64_t task) {
            const int64_t entries = bins_.bins() * counters(a_.bits);
            uint32_t* table = static_cast<uint32_t*>(a_.workspace) + task * entries;
            std::fill_n(table, entries, 0);
            int64_t held = 0, begin;
            while (!stopped() &&
                   (begin = __atomic_fetch_add(&next, kChunk, __ATOMIC_RELAXED)) < size_) {
                const int64_t n = std::min(kChunk, size_ - begin);
                if (held + n > kFlush) {
                    flush(table, &bad);
                    std::fill_n(table, entries, 0);
                    held = 0;
                }
                counters(a_.bits) == 4 ? count<4>(begin, n, table) : count<1>(begin, n, table);
                held += n;
            }
            flush(table, &bad);
        });
        if (bad == 0) return;
        const T* first = std::find_if(x_, x_ + size_, [&](T x) { return !finite(pattern(x)); });
        Faults{bad, size_ - (first - x_)}.add_to(a_.status);
    }

    // Straight to the counts: of all values (few), or of each channel its own.
    void count_directly(int threads) {
        const Features& x = a_.x;
        if (!a_.by_channel) {
            Faults faults;
            for (int64_t i = 0; i < size_; ++i) add(x_[i], a_.counts, i, faults);
            return faults.add_to(a_.status);
        }
        // Channels side by side share the lines that are read.
        const int64_t some = x.stride_c == 1 ? kChannels : 1;
        const int64_t bytes = size_ * static_cast<int64_t>(sizeof(T));
        parallel_for((x.channels + some - 1) / some, threads, bytes, [&](int64_t task) {
            const int64_t end = std::min((task + 1) * some, x.channels);
            Faults faults;
            int64_t unasked = 0;
            for (int64_t i = 0; i < x.n; ++i) {
                if ((unasked += some * x.positions) >= kChunk) {
                    if (stopped()) return;
                    unasked = 0;
                }
                for (int64_t p = 0; p < x.positions; ++p) {
                    for (int64_t c = task * some; c < end; ++c) {
                        add(x_[i * x.stride_n + c * x.stride_c + p * x.stride_p],
                            a_.counts + c * bins_.bins(), (i * x.channels + c) * x.positions + p, faults);
                    }
                }
            }
            faults.add_to(a_.status);
        });
    }

   private:
    uint32_t pattern(T x) const { return word(x) >> bins_.shift; }
    bool finite(uint32_t pattern) const { return (pattern & (bins_.half - 1)) < bins_.finite; }

    // Where the pattern stands in the order of the values.
    int64_t bin(uint32_t pattern) const {
        return pattern < bins_.half ? bins_.half + pattern : bins_.bins() - 1 - pattern;
    }

    void add(T x, int64_t* counts, int64_t flat, Faults& faults) const {
        const uint32_t found = pattern(x);
        if (finite(found)) {
            ++counts[bin(found)];
        } else {
            ++faults.count;
            faults.from_end = std::max(faults.from_end, size_ - flat);
        }
    }

    template <int Counters>
    void count(int64_t begin, int64_t n, uint32_t* table) const {
        const T* x = x_ + begin;
        const int shift = bins_.shift;  // a copy: the table could be where bins_ lies, for all C++ knows
        int64_t i = 0;
        for (; i + 8 <= n; i += 8) {
            for (int k = 0; k < 8; ++k) {
                ++table[static_cast<uint64_t>(word(x[i + k]) >> shift) * Counters + k % Counters];
            }
        }
        for (; i < n; ++i) ++table[static_cast<uint64_t>(word(x[i]) >> shift) * Counters];
    }

    void flush(const uint32_t* table, int64_t* bad) const {
        const int each = counters(a_.bits);
        for (uint32_t p = 0; p < bins_.bins(); ++p) {
            int64_t sum = 0;
            for (int k = 0; k < each; ++k) sum += table[int64_t{p} * each + k];
            if (sum == 0) continue;
            __atomic_fetch_add(finite(p) ? &a_.counts[bin(p)] : bad, sum, __ATOMIC_RELAXED);
        }
    }

    const ValueHistogram& a_;
    const T* x_;
    ValueBins bins_;
    int64_t size_;
};

}  // namespace

int64_t value_histogram_workspace(const Features& x, bool by_channel, int64_t bits) {
    if (by_channel) return 0;
    return (tables(x.channels) * counters(bits) << bits) * static_cast<int64_t>(sizeof(uint32_t));
}

void value_histogram(const ValueHistogram& a, int threads) {
    validate(a);
    dispatch<Half, BFloat>(a.x.dtype, [&](auto type) {
        Counter<typename decltype(type)::type> counter(a);
        a.by_channel || tables(a.x.channels) == 0 ? counter.count_directly(threads)
                                                  : counter.count_all(threads);
    });
}

}  // namespace resque::cpu
