// value_histogram: random bit patterns of every dtype, so among them infinity, NaN and what no table
// holds, from addresses of every kind; and channels in both memory orders.
#include "support.h"

namespace {

struct Case {
    DType dtype;
    int64_t bits, n, channels, positions;
    bool channels_last, by_channel, ordinary;  // ordinary values stay in the tables
    int64_t shift;                             // elements by which the data are off an address of 16 bytes
};

// A float64 as the float32 that is next to it towards zero.
float cut(double x) {
    if (std::fabs(x) >= 0x1p128) return static_cast<float>(INFINITY);
    const float rounded = static_cast<float>(x);
    return std::fabs(rounded) > std::fabs(x) ? std::nextafter(rounded, 0.0f) : rounded;
}

void count(const Case& c) {
    const std::string where = "dtype " + std::to_string(static_cast<int>(c.dtype)) + ", bits " +
                              std::to_string(c.bits) + ", n " + std::to_string(c.n) + ", channels " +
                              std::to_string(c.channels) + ", positions " + std::to_string(c.positions);
    const int64_t size = c.dtype == DType::float64 ? 8 : c.dtype == DType::float32 ? 4 : 2;
    const int64_t row = c.channels * c.positions, total = c.n * row;
    const int64_t stride_c = c.channels_last ? 1 : c.positions, stride_p = c.channels_last ? c.channels : 1;
    const int64_t bins = int64_t{1} << c.bits, groups = c.by_channel ? c.channels : 1;
    const int width = size == 2 ? 16 : 32, exponent = c.dtype == DType::float16 ? 5 : 8;
    Buffer<char> data((total + c.shift) * size);
    char* const start = data.get() + c.shift * size;

    Random random;
    std::vector<int64_t> expected(groups * bins, 5);  // there is something to add to
    int64_t faults = 0, from_end = 0;
    for (int64_t i = 0; i < total; ++i) {
        const int64_t channel = i / c.positions % c.channels, position = i % c.positions;
        char* const at = start + (i / row * row + channel * stride_c + position * stride_p) * size;
        if (c.ordinary) {
            store(at, c.dtype, static_cast<double>(random.below(17) - 8));
        } else {
            for (int64_t b = 0; b < size; ++b) at[b] = static_cast<char>(random.below(256));
        }
        uint32_t pattern = 0;
        if (c.dtype == DType::float64) {
            double wide;
            std::memcpy(&wide, at, 8);
            const float narrow = std::isnan(wide) ? NAN : cut(wide);
            std::memcpy(&pattern, &narrow, 4);
        } else {
            std::memcpy(&pattern, at, size);
        }
        const int64_t magnitude = pattern & ((uint32_t{1} << (width - 1)) - 1);
        if (magnitude >> (width - 1 - exponent) == (1 << exponent) - 1) {
            if (faults++ == 0) from_end = total - i;
            continue;
        }
        const int64_t up = magnitude >> (width - c.bits);
        ++expected[(c.by_channel ? channel * bins : 0) +
                   (pattern >> (width - 1) ? bins / 2 - 1 - up : bins / 2 + up)];
    }

    Features x{start, c.dtype, c.n, c.channels, c.positions, row, stride_c, stride_p};
    if (!c.by_channel) x = {start, c.dtype, 1, total, 1, total, 1, 1};
    Buffer<int64_t> counts(groups * bins), status(kStatusWords);
    for (int64_t i = 0; i < groups * bins; ++i) counts[i] = 5;
    for (int s = 0; s < kStatusWords; ++s) status[s] = 0;
    Buffer<char> workspace(cuda::value_histogram_workspace(x, c.by_channel, c.bits));
    cuda::value_histogram({x, c.by_channel, c.bits, counts.get(), status.get(), workspace.get()}, 0, nullptr);
    for (int64_t i = 0; i < groups * bins; ++i) expect(counts[i] == expected[i], "counts", where);
    expect(status[kNonfiniteCount] == faults && status[kNonfiniteFromEnd] == from_end, "status", where);
}

}  // namespace

int main() {
    for (int code = 0; code < 4; ++code) {
        const auto dtype = static_cast<DType>(code);
        for (const int64_t shift : {0, 1, 3}) {
            count({dtype, 10, 1, 999, 1, true, false, false, shift});
            count({dtype, 16, 1, 2'000 + shift, 1, true, false, true, shift});
        }
        count({dtype, 16, 1, 3, 1, true, false, false, 1});
        count({dtype, 9, 3, 5, 7, false, true, false, 1});
        count({dtype, 9, 3, 5, 7, true, true, false, 0});
    }
    count({DType::float32, 20, 1, 999, 1, true, false, false, 0});
    count({DType::float32, 16, 1, 40'000, 1, true, false, true, 0});  // several blocks
    count({DType::float32, 16, 1, 0, 1, true, false, false, 0});
    count({DType::float32, 10, 0, 4, 3, false, true, false, 0});
    std::puts("right");
}
