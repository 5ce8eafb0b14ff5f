// class_order on small inputs, each result checked; for whoever needs sorted rows.
#pragma once

#include "support.h"

namespace {

struct Sorted {
    Buffer<int32_t> order;
    Buffer<int64_t> offsets;
};

template <typename Label>
Sorted sort_rows(int64_t n, int64_t classes, int64_t blocks, int64_t stride, bool with_seen,
                 bool with_bad, std::vector<int64_t>* group_of = nullptr) {
    const std::string where = "n " + std::to_string(n) + ", classes " + std::to_string(classes) +
                              ", blocks " + std::to_string(blocks);
    Random random;
    Buffer<Label> labels(n ? (n - 1) * stride + 1 : 0);
    Buffer<int64_t> seen(classes), status(kStatusWords);
    Sorted out{Buffer<int32_t>(n), Buffer<int64_t>(classes * blocks + 1)};
    for (int64_t c = 0; c < classes; ++c) seen[c] = random.below(7);
    for (int s = 0; s < kStatusWords; ++s) status[s] = 0;
    std::vector<std::vector<int32_t>> groups(classes * blocks);
    std::vector<int64_t> turn(classes);
    for (int64_t c = 0; c < classes; ++c) turn[c] = with_seen ? seen[c] : 0;
    int64_t first_bad = -1;
    if (group_of) group_of->assign(n, -1);
    for (int64_t i = 0; i < n; ++i) {
        const bool bad = with_bad && random.below(50) == 7;
        const int64_t label = bad ? (random.below(2) ? -1 : classes) : random.below(classes);
        labels[i * stride] = static_cast<Label>(label);
        if (bad) {
            if (first_bad < 0) first_bad = i;
            continue;
        }
        const int64_t g = label * blocks + turn[label]++ % blocks;
        groups[g].push_back(static_cast<int32_t>(i));
        if (group_of) (*group_of)[i] = g;
    }

    Buffer<char> workspace(cuda::class_order_workspace(n, classes, blocks));
    cuda::class_order({labels.get(), sizeof(Label) == 8, stride, n, classes, blocks,
                       with_seen ? seen.get() : nullptr, out.order.get(), out.offsets.get(),
                       status.get(), workspace.get()},
                      0, nullptr);

    int64_t at = 0;
    for (int64_t g = 0; g < classes * blocks; ++g) {
        expect(out.offsets[g] == at, "offsets", where);
        for (const int32_t row : groups[g]) expect(out.order[at++] == row, "order", where);
    }
    expect(out.offsets[classes * blocks] == at, "the last offset", where);
    expect(status[kBadLabelFromEnd] == (first_bad < 0 ? 0 : n - first_bad), "status", where);
    expect(first_bad < 0 || status[kBadLabel] == labels[first_bad * stride], "the bad label", where);
    return out;
}

}  // namespace
