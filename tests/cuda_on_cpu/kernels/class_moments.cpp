// class_moments: small inputs of every kind, or `many` windows, more than blocks are launched.
#include "class_order.h"

namespace {

struct Case {
    DType dtype;
    int64_t n, channels, positions, classes;
    bool channels_last, squares, skip;
    int64_t shift;  // elements by which the data are off an address of 16 bytes
};

void add_up(const Case& c) {
    const std::string where = "dtype " + std::to_string(static_cast<int>(c.dtype)) + ", n " +
                              std::to_string(c.n) + ", channels " + std::to_string(c.channels) +
                              ", positions " + std::to_string(c.positions);
    std::vector<int64_t> group_of;
    const Sorted sorted = sort_rows<int32_t>(c.n, c.classes, 1, 1, false, true, &group_of);
    const int64_t size = c.dtype == DType::float64 ? 8 : c.dtype == DType::float32 ? 4 : 2;
    const int64_t row = c.channels * c.positions;
    const int64_t stride_c = c.channels_last ? 1 : c.positions;
    const int64_t stride_p = c.channels_last ? c.channels : 1;
    Buffer<char> data((c.n * row + c.shift) * size);
    char* const start = data.get() + c.shift * size;

    Random random;
    const int64_t doubles = c.classes * c.channels;
    std::vector<double> sums(doubles), sumsq(doubles);
    std::vector<int64_t> counts(c.classes);
    int64_t faults = 0, rows = 0, from_end = 0;
    for (int64_t i = 0; i < c.n; ++i) {
        std::vector<double> mean(c.channels);
        const bool bad = c.skip && random.below(40) == 3;
        for (int64_t k = 0; k < c.channels; ++k) {
            for (int64_t p = 0; p < c.positions; ++p) {
                const bool nan = bad && k == c.channels - 1 && p == c.positions / 2;
                const double value = nan ? INFINITY : static_cast<double>(random.below(17) - 8);
                store(start + (i * row + k * stride_c + p * stride_p) * size, c.dtype, value);
                mean[k] += value / static_cast<double>(c.positions);
            }
        }
        const int64_t g = group_of[i];
        if (g < 0) continue;
        if (bad) {
            const int64_t from = c.n * c.channels - (i * c.channels + c.channels - 1);
            if (faults++ == 0) from_end = from;
            ++rows;
            continue;
        }
        ++counts[g];
        for (int64_t k = 0; k < c.channels; ++k) {
            sums[g * c.channels + k] += mean[k];
            sumsq[g * c.channels + k] += mean[k] * mean[k];
        }
    }

    const Features x{start, c.dtype, c.n, c.channels, c.positions, row, stride_c, stride_p};
    Buffer<int64_t> count_out(c.classes), status(kStatusWords);
    Buffer<double> sum_out(doubles), sumsq_out(c.squares ? doubles : 0);
    for (int s = 0; s < kStatusWords; ++s) status[s] = 0;
    Buffer<char> workspace(cuda::class_moments_workspace(x, c.classes, c.squares));
    cuda::class_moments({x, sorted.order.get(), sorted.offsets.get(), c.classes, c.squares, c.skip,
                         count_out.get(), sum_out.get(), sumsq_out.get(), status.get(),
                         workspace.get()},
                        0, nullptr);

    for (int64_t g = 0; g < c.classes; ++g) expect(count_out[g] == counts[g], "counts", where);
    for (int64_t i = 0; i < doubles; ++i) {
        expect(sum_out[i] == sums[i], "sums", where);
        expect(!c.squares || sumsq_out[i] == sumsq[i], "sums of squares", where);
    }
    expect(status[kNonfiniteCount] == faults && status[kNonfiniteRows] == rows &&
               status[kNonfiniteFromEnd] == from_end,
           "status", where);
}

}  // namespace

int main(int count, char** arguments) {
    if (count > 1) {
        // Windows of 16 rows, and a class about two of them: there are leaders everywhere.
        const int64_t many = std::atoll(arguments[1]);
        add_up({DType::float32, many * 16, 1, 1, many / 2, false, true, false, 0});
    } else {
        for (int code = 0; code < 4; ++code) {
            const auto dtype = static_cast<DType>(code);
            add_up({dtype, 75, 8, 1, 3, false, true, true, 0});
            add_up({dtype, 75, 7, 1, 3, false, false, false, 1});
            add_up({dtype, 40, 8, 4, 3, false, true, true, 0});
            add_up({dtype, 20, 5, 4, 3, true, true, true, 1});
            add_up({dtype, 20, 8, 16, 30, true, false, false, 0});
            add_up({dtype, 9, 3, 16, 2, false, true, false, 3});
        }
        add_up({DType::float32, 0, 4, 1, 2, false, true, false, 0});
        add_up({DType::float32, 33, 130, 1, 1, false, true, true, 0});
        // Groups of 13 windows, more than one thread adds, and several for a block.
        add_up({DType::float32, 700, 3, 1, 3, false, true, false, 0});
        add_up({DType::float16, 700, 3, 1, 3, false, false, true, 0});
    }
    std::puts("right");
}
