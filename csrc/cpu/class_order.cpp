// class_order on the CPU: a counting sort over fixed segments of the rows.
//
// Every segment counts its rows of each class; the counts of the segments before it then say which row
// of its class each one is, the j-th, and so its place: block (turn + j) % blocks, there the
// (j / blocks)-th. With one block a counter begins at the place itself: one lookup less for every row.
// Segments are a function of the sizes, and places are computed, not raced for.
#include <algorithm>

#include "cpu/parallel.h"
#include "validate.h"

namespace resque::cpu {
namespace {

// Enough for many threads, but the counters of all segments stay fewer than half the rows.
int64_t segments_of(int64_t n, int64_t classes) {
    return std::clamp<int64_t>(n / std::max<int64_t>(16384, 2 * classes), 1, 64);
}

// The workspace: [segments, classes] counters, [segments] first bad rows, [classes] turns.
template <typename Label>
void sort_rows(const ClassOrder& a, int threads) {
    const int64_t segments = segments_of(a.n, a.classes);
    int64_t* counters = static_cast<int64_t*>(a.workspace);
    int64_t* bad = counters + segments * a.classes;
    int64_t* turn = bad + segments;
    const int64_t bytes = a.n * static_cast<int64_t>(sizeof(Label) + sizeof(int32_t)) * 8;  // of time

    // visit(row, class) for the rows of a segment whose label is in range; the first other row, or n.
    const auto visit_rows = [&](int64_t segment, const auto& visit) {
        const Label* labels = static_cast<const Label*>(a.labels);
        const int64_t end = (segment + 1) * a.n / segments;
        int64_t first_bad = a.n;
        for (int64_t i = segment * a.n / segments; i < end; ++i) {
            const int64_t label = labels[i * a.label_stride];
            if (static_cast<uint64_t>(label) < static_cast<uint64_t>(a.classes)) {
                visit(i, label);
            } else if (first_bad == a.n) {
                first_bad = i;
            }
        }
        return first_bad;
    };

    parallel_for(segments, threads, bytes, [&](int64_t s) {
        int64_t* count = counters + s * a.classes;
        std::fill_n(count, a.classes, 0);
        bad[s] = visit_rows(s, [&](int64_t, int64_t c) { ++count[c]; });
    });

    int64_t start = 0;
    for (int64_t c = 0; c < a.classes; ++c) {
        int64_t rows = 0;
        for (int64_t s = 0; s < segments; ++s) {
            const int64_t count = counters[s * a.classes + c];
            counters[s * a.classes + c] = (a.blocks == 1 ? start : 0) + rows;
            rows += count;
        }
        turn[c] = a.seen ? a.seen[c] % a.blocks : 0;
        for (int64_t b = 0; b < a.blocks; ++b) {
            // The d-th block from turn[c] on has one of the rows left over when d < rows % blocks.
            const int64_t d = (b - turn[c] + a.blocks) % a.blocks;
            a.offsets[c * a.blocks + b] = start;
            start += rows / a.blocks + (d < rows % a.blocks);
        }
    }
    a.offsets[a.classes * a.blocks] = start;

    const uint32_t blocks = static_cast<uint32_t>(a.blocks);  // 32-bit division is three times faster
    // Apart: of every class, neighbouring segments write to the same lines of `order`.
    parallel_apart(segments, threads, bytes, [&](int64_t s) {
        int64_t* next = counters + s * a.classes;
        if (blocks == 1) {
            visit_rows(s, [&](int64_t i, int64_t c) {
                a.order[next[c]++] = static_cast<int32_t>(i);
            });
            return;
        }
        visit_rows(s, [&](int64_t i, int64_t c) {
            const uint32_t j = static_cast<uint32_t>(next[c]++);
            const uint32_t dealt = static_cast<uint32_t>(turn[c]) + j % blocks;
            const uint32_t block = dealt >= blocks ? dealt - blocks : dealt;
            a.order[a.offsets[c * a.blocks + block] + j / blocks] = static_cast<int32_t>(i);
        });
    });

    const int64_t first_bad = *std::min_element(bad, bad + segments);
    if (first_bad < a.n) {
        a.status[kBadLabelFromEnd] = a.n - first_bad;
        a.status[kBadLabel] = static_cast<const Label*>(a.labels)[first_bad * a.label_stride];
    }
}

}  // namespace

int64_t class_order_workspace(int64_t n, int64_t classes, int64_t) {
    const int64_t segments = segments_of(n, classes);
    return (segments * classes + segments + classes) * static_cast<int64_t>(sizeof(int64_t));
}

void class_order(const ClassOrder& a, int threads) {
    validate(a);
    a.labels_int64 ? sort_rows<int64_t>(a, threads) : sort_rows<int32_t>(a, threads);
}

}  // namespace resque::cpu
