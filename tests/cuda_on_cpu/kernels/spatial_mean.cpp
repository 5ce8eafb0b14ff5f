// spatial_mean: both memory orders, wide and single loads, few positions and many.
#include "support.h"

namespace {

struct Case {
    DType dtype;
    int64_t n, channels, positions;
    bool channels_last;
    int64_t shift;  // elements by which the data are off an address of 16 bytes
};

void average(const Case& c) {
    const std::string where = "dtype " + std::to_string(static_cast<int>(c.dtype)) + ", n " +
                              std::to_string(c.n) + ", channels " + std::to_string(c.channels) +
                              ", positions " + std::to_string(c.positions);
    const int64_t size = c.dtype == DType::float64 ? 8 : c.dtype == DType::float32 ? 4 : 2;
    const int64_t row = c.channels * c.positions, stride_c = c.channels_last ? 1 : c.positions;
    const int64_t stride_p = c.channels_last ? c.channels : 1, items = c.n * c.channels;
    Buffer<char> data((c.n * row + c.shift) * size);
    char* const start = data.get() + c.shift * size;
    Random random;
    std::vector<double> sums(items);
    for (int64_t i = 0; i < items; ++i) {
        for (int64_t p = 0; p < c.positions; ++p) {
            const double value = static_cast<double>(random.below(17) - 8);
            const int64_t at = i / c.channels * row + i % c.channels * stride_c + p * stride_p;
            store(start + at * size, c.dtype, value);
            sums[i] += value;
        }
    }
    const bool wide = c.dtype == DType::float64;
    Buffer<char> means(items * (wide ? 8 : 4));
    cuda::spatial_mean({{start, c.dtype, c.n, c.channels, c.positions, row, stride_c, stride_p}, means.get()},
                       0, nullptr);
    for (int64_t i = 0; i < items; ++i) {
        const double mean = sums[i] / static_cast<double>(c.positions);
        const bool right = wide ? reinterpret_cast<double*>(means.get())[i] == mean
                                : reinterpret_cast<float*>(means.get())[i] == static_cast<float>(mean);
        expect(right, "means", where);
    }
}

}  // namespace

int main() {
    for (int code = 0; code < 4; ++code) {
        const auto dtype = static_cast<DType>(code);
        for (const bool channels_last : {false, true}) {
            average({dtype, 3, 8, 16, channels_last, 0});
            average({dtype, 2, 40, 49, channels_last, 0});
            average({dtype, 5, 3, 2, channels_last, 1});
            average({dtype, 1, 1, 300, channels_last, 0});
        }
        average({dtype, 3, 72, 1, true, 0});
    }
    average({DType::float32, 0, 4, 3, false, 0});
    std::puts("right");
}
