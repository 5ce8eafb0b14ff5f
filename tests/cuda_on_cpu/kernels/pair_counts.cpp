// pair_counts: tables in shared memory and in the result, or `many` tiles, more than blocks are launched.
#include "support.h"

namespace {

template <typename LabelA, typename LabelB>
void count_pairs(int64_t n, int64_t count_a, int64_t count_b, int64_t stride, bool sorted, bool with_bad) {
    const std::string where = "n " + std::to_string(n) + ", counts " + std::to_string(count_a) + " x " +
                              std::to_string(count_b);
    Random random;
    const int64_t size = n ? (n - 1) * stride + 1 : 0, cells = count_a * count_b;
    Buffer<LabelA> labels_a(size);
    Buffer<LabelB> labels_b(size);
    Buffer<int64_t> table(cells), status_a(kStatusWords), status_b(kStatusWords);
    std::vector<int64_t> expected(cells);
    for (int64_t c = 0; c < cells; ++c) expected[c] = table[c] = c % 3;
    for (int s = 0; s < kStatusWords; ++s) status_a[s] = status_b[s] = 0;

    int64_t bad_a = n, bad_b = n;
    for (int64_t i = n - 1; i >= 0; --i) {
        int64_t a = sorted ? i * count_a / n : random.below(count_a);
        int64_t b = sorted ? a % count_b : random.below(count_b);
        if (with_bad && random.below(40) == 7) a = random.below(2) ? -1 : count_a, bad_a = i;
        if (with_bad && random.below(40) == 7) b = random.below(2) ? -1 : count_b, bad_b = i;
        labels_a[i * stride] = static_cast<LabelA>(a);
        labels_b[i * stride] = static_cast<LabelB>(b);
        if (a >= 0 && a < count_a && b >= 0 && b < count_b) ++expected[a * count_b + b];
    }

    Buffer<char> workspace(cuda::pair_counts_workspace(n, count_a, count_b));
    cuda::pair_counts({labels_a.get(), labels_b.get(), sizeof(LabelA) == 8, sizeof(LabelB) == 8, stride,
                       stride, n, count_a, count_b, table.get(), status_a.get(), status_b.get(),
                       workspace.get()},
                      0, nullptr);

    for (int64_t c = 0; c < cells; ++c) expect(table[c] == expected[c], "cell", where);
    expect(status_a[kBadLabelFromEnd] == n - bad_a, "status of a", where);
    expect(status_b[kBadLabelFromEnd] == n - bad_b, "status of b", where);
    expect(bad_a == n || status_a[kBadLabel] == labels_a[bad_a * stride], "bad label of a", where);
    expect(bad_b == n || status_b[kBadLabel] == labels_b[bad_b * stride], "bad label of b", where);
}

}  // namespace

int main(int count, char** arguments) {
    if (count > 1) {
        const int64_t many = std::atoll(arguments[1]);
        count_pairs<int32_t, int32_t>(many * 4096 - 5, 3, 2, 1, false, false);
        count_pairs<int32_t, int32_t>(many * 4096 - 5, 120, 110, 1, true, false);
    } else {
        count_pairs<int64_t, int32_t>(0, 3, 2, 1, false, false);
        count_pairs<int64_t, int64_t>(1, 1, 1, 1, false, false);
        count_pairs<int32_t, int64_t>(4'500, 7, 9, 1, false, true);
        count_pairs<int64_t, int64_t>(700, 96, 128, 2, true, true);
        count_pairs<int32_t, int32_t>(700, 96, 129, 3, false, true);
        count_pairs<int64_t, int32_t>(5'000, 13'000, 1, 1, true, false);
    }
    std::puts("right");
}
