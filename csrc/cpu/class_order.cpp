// class_order on the CPU: a counting sort, one pass to count the classes and one to place the rows.
//
// It is serial: two passes over 4 or 8 bytes a row, about 3 ns a row, against the row itself (2 KB and
// 200 ns for 512 float32) that class_moments then reads.
#include <algorithm>

#include "validate.h"

namespace resque::cpu {
namespace {

template <typename Label>
void sort_rows(const ClassOrder& a) {
    const Label* labels = static_cast<const Label*>(a.labels);
    int64_t* next = static_cast<int64_t*>(a.workspace);  // [groups] where each group's next row goes
    int64_t* turn = next + a.classes * a.blocks;         // [classes] the block whose turn it is
    const int64_t groups = a.classes * a.blocks;

    std::fill(next, next + groups, 0);
    for (int64_t c = 0; c < a.classes; ++c) turn[c] = a.seen ? a.seen[c] % a.blocks : 0;
    // Counted at [class * blocks]; spread over the blocks below.
    for (int64_t i = 0; i < a.n; ++i) {
        const int64_t label = labels[i * a.label_stride];
        if (static_cast<uint64_t>(label) >= static_cast<uint64_t>(a.classes)) {
            if (a.status[kBadLabelFromEnd] == 0) {
                a.status[kBadLabelFromEnd] = a.n - i;
                a.status[kBadLabel] = label;
            }
            continue;
        }
        ++next[label * a.blocks];
    }

    int64_t start = 0;
    for (int64_t c = 0; c < a.classes; ++c) {
        const int64_t rows = next[c * a.blocks];
        for (int64_t b = 0; b < a.blocks; ++b) {
            // Dealt in turn, starting at turn[c]: the d-th block from there has one of the
            // rows % blocks rows left over when d < rows % blocks.
            const int64_t d = (b - turn[c] + a.blocks) % a.blocks;
            const int64_t g = c * a.blocks + b;
            a.offsets[g] = next[g] = start;
            start += rows / a.blocks + (d < rows % a.blocks);
        }
    }
    a.offsets[groups] = start;

    for (int64_t i = 0; i < a.n; ++i) {
        const int64_t label = labels[i * a.label_stride];
        if (static_cast<uint64_t>(label) >= static_cast<uint64_t>(a.classes)) continue;
        const int64_t b = turn[label];
        turn[label] = b + 1 == a.blocks ? 0 : b + 1;
        a.order[next[label * a.blocks + b]++] = static_cast<int32_t>(i);
    }
}

}  // namespace

int64_t class_order_workspace(int64_t, int64_t classes, int64_t blocks) {
    return (classes * blocks + classes) * static_cast<int64_t>(sizeof(int64_t));
}

void class_order(const ClassOrder& a) {
    validate(a);
    a.labels_int64 ? sort_rows<int64_t>(a) : sort_rows<int32_t>(a);
}

}  // namespace resque::cpu
