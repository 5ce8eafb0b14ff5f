// pair_counts on the CPU: private tables over segments of the rows, added up at the end.
//
// A row costs one increment, and one that hits the cell of the row before has to wait for it, some 5
// cycles. Neighbours with equal labels are common, so even and odd rows count in tables of their own.
// Tables are 32 bits a cell: 100 x 100 twice is 80 KB, which stays in the L2.
//
// Where private tables would cost more than the rows are worth, the threads add to the result itself,
// atomically, once for every run of equal cells: a cell that all threads want is 5 times slower than one
// that each has to itself. All is integer: no order and no number of threads ever shows.
#include <algorithm>

#include "cpu/parallel.h"
#include "validate.h"

namespace resque::cpu {
namespace {

constexpr int64_t kSegments = 64;      // at most
constexpr int64_t kLeastRows = 16384;  // of a segment
constexpr int64_t kTables = 2;         // of a segment

struct Plan {
    int64_t cells, segments;
    bool private_tables;
    int64_t counts;  // of a segment, in whole lines of the cache: threads do not share any

    Plan(int64_t n, int64_t count_a, int64_t count_b) : cells(count_a * count_b) {
        // Eight rows a cell: clearing and adding the tables then costs a tenth of the counting.
        const int64_t worth = n / std::max(kLeastRows, 8 * kTables * cells);
        private_tables = worth > 0;
        segments = std::clamp<int64_t>(private_tables ? worth : n / kLeastRows, 1, kSegments);
        counts = private_tables ? (kTables * cells + 15) / 16 * 16 : 0;
    }
};

// The first label out of range on each side of a segment: its position, or n.
struct Bad {
    int64_t a, b;
};

// add(row, cell) for the rows of a segment that have a cell.
template <typename LabelA, typename LabelB, typename Add>
Bad visit_rows(const PairCounts& a, const Plan& plan, int64_t segment, const Add& add) {
    const LabelA* labels_a = static_cast<const LabelA*>(a.labels_a);
    const LabelB* labels_b = static_cast<const LabelB*>(a.labels_b);
    const int64_t end = (segment + 1) * a.n / plan.segments;
    Bad bad{a.n, a.n};
    for (int64_t i = segment * a.n / plan.segments; i < end; ++i) {
        const int64_t label_a = labels_a[i * a.stride_a], label_b = labels_b[i * a.stride_b];
        const bool good_a = static_cast<uint64_t>(label_a) < static_cast<uint64_t>(a.count_a);
        const bool good_b = static_cast<uint64_t>(label_b) < static_cast<uint64_t>(a.count_b);
        if (good_a && good_b) {
            add(i, label_a * a.count_b + label_b);
            continue;
        }
        if (!good_a) bad.a = std::min(bad.a, i);
        if (!good_b) bad.b = std::min(bad.b, i);
    }
    return bad;
}

template <typename Label>
void report(const void* labels, int64_t stride, int64_t n, int64_t bad, int64_t* status) {
    if (bad == n) return;
    status[kBadLabelFromEnd] = n - bad;
    status[kBadLabel] = static_cast<const Label*>(labels)[bad * stride];
}

// The workspace: [segments, counts] where tables are private, then [segments] first bad rows.
template <typename LabelA, typename LabelB>
void count_pairs(const PairCounts& a, int threads) {
    const Plan plan(a.n, a.count_a, a.count_b);
    const int64_t bytes = a.n * static_cast<int64_t>(sizeof(LabelA) + sizeof(LabelB));
    uint32_t* tables = static_cast<uint32_t*>(a.workspace);
    Bad* bad = reinterpret_cast<Bad*>(tables + plan.segments * plan.counts);

    parallel_for(plan.segments, threads, bytes, [&](int64_t s) {
        if (plan.private_tables) {
            uint32_t* even = tables + s * plan.counts;
            std::fill_n(even, plan.counts, 0);
            bad[s] = visit_rows<LabelA, LabelB>(a, plan, s, [&](int64_t row, int64_t cell) {
                ++even[(row & 1 ? plan.cells : 0) + cell];
            });
            return;
        }
        int64_t last = 0, run = 0;
        bad[s] = visit_rows<LabelA, LabelB>(a, plan, s, [&](int64_t, int64_t cell) {
            if (cell != last && run > 0) {
                __atomic_fetch_add(&a.table[last], run, __ATOMIC_RELAXED);
                run = 0;
            }
            last = cell;
            ++run;
        });
        if (run > 0) __atomic_fetch_add(&a.table[last], run, __ATOMIC_RELAXED);
    });

    Bad first{a.n, a.n};
    for (int64_t s = 0; s < plan.segments; ++s) {
        first = {std::min(first.a, bad[s].a), std::min(first.b, bad[s].b)};
        if (!plan.private_tables) continue;
        const uint32_t* even = tables + s * plan.counts;
        for (int64_t c = 0; c < plan.cells; ++c) {
            a.table[c] += int64_t{even[c]} + int64_t{even[plan.cells + c]};
        }
    }
    report<LabelA>(a.labels_a, a.stride_a, a.n, first.a, a.status_a);
    report<LabelB>(a.labels_b, a.stride_b, a.n, first.b, a.status_b);
}

}  // namespace

int64_t pair_counts_workspace(int64_t n, int64_t count_a, int64_t count_b) {
    const Plan plan(n, count_a, count_b);
    return plan.segments * (plan.counts * 4 + static_cast<int64_t>(sizeof(Bad)));
}

void pair_counts(const PairCounts& a, int threads) {
    validate(a);
    const auto with = [&](auto label_a) {
        a.int64_b ? count_pairs<decltype(label_a), int64_t>(a, threads)
                  : count_pairs<decltype(label_a), int32_t>(a, threads);
    };
    a.int64_a ? with(int64_t{}) : with(int32_t{});
}

}  // namespace resque::cpu
