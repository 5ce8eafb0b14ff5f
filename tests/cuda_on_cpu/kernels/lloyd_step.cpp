// lloyd_step: small inputs of every kind, for few centres and for many; or such of `float32`, fewer.
#include "support.h"

namespace {

struct Case {
    DType dtype;
    int64_t n, width, k;
    int64_t shift;   // elements by which the data are off an address of 16 bytes
    int64_t offset;  // added to all features, which then are whole numbers around it
    bool faults, update, distances;
};

// As resque.h has it.
double distance(const double* x, const double* c, int64_t n) {
    if (n > 128) {
        const int64_t half = n / 2 / 8 * 8;
        return distance(x, c, half) + distance(x + half, c + half, n - half);
    }
    const auto square = [&](int64_t i) { return (x[i] - c[i]) * (x[i] - c[i]); };
    double lane[8] = {}, sum = 0;
    const int64_t whole = n / 8 * 8;
    for (int64_t i = 0; i < whole; ++i) lane[i % 8] += square(i);
    for (int step = 1; step < 8; step *= 2) {
        for (int i = 0; i + step < 8; i += 2 * step) lane[i] += lane[i + step];
    }
    sum = lane[0];
    for (int64_t i = whole; i < n; ++i) sum += square(i);
    return sum;
}

void step(const Case& c) {
    const std::string where = "dtype " + std::to_string(static_cast<int>(c.dtype)) + ", n " +
                              std::to_string(c.n) + ", width " + std::to_string(c.width) + ", k " +
                              std::to_string(c.k) + ", offset " + std::to_string(c.offset);
    const int64_t size = c.dtype == DType::float64 ? 8 : c.dtype == DType::float32 ? 4 : 2;
    Random random;
    Buffer<char> data((c.n * c.width + c.shift) * size);
    char* const start = data.get() + c.shift * size;
    Buffer<double> centers(c.k * c.width);
    // A quarter of the centres are copies, and few values are a row's: ties of two and of many.
    for (int64_t k = 0; k < c.k; ++k) {
        const int64_t copied = k > 0 && random.below(4) == 0 ? random.below(k) : -1;
        for (int64_t d = 0; d < c.width; ++d) {
            const double value = static_cast<double>(random.below(33) - 16) / 4 + static_cast<double>(c.offset);
            centers[k * c.width + d] = copied < 0 ? value : centers[copied * c.width + d];
        }
    }
    std::vector<double> sums(c.k * c.width), squared(c.n), row(c.width);
    std::vector<int64_t> labels(c.n), counts(c.k);
    int64_t faults = 0, from_end = 0;
    double inertia = 0;
    for (int64_t i = 0; i < c.n; ++i) {
        const bool bad = c.faults && random.below(20) == 3;
        for (int64_t d = 0; d < c.width; ++d) {
            const bool nan = bad && d == c.width - 1;
            row[d] = nan ? INFINITY : static_cast<double>(random.below(9) - 4 + c.offset);
            store(start + (i * c.width + d) * size, c.dtype, row[d]);
        }
        for (int64_t k = 0; k < c.k; ++k) {
            const double other = distance(row.data(), centers.get() + k * c.width, c.width);
            if (k == 0 || other < squared[i]) squared[i] = other, labels[i] = k;
        }
        inertia += squared[i];
        ++counts[labels[i]];
        for (int64_t d = 0; d < c.width; ++d) sums[labels[i] * c.width + d] += row[d];
        if (bad && faults++ == 0) from_end = c.n * c.width - (i * c.width + c.width - 1);
    }

    const Features x{start, c.dtype, c.n, c.width, 1, c.width, 1, 1};
    Buffer<int64_t> label_out(c.n), count_out(c.update ? c.k : 0), rechecked(1), status(kStatusWords);
    Buffer<double> squared_out(c.distances ? c.n : 0), inertia_out(1), sum_out(c.update ? c.k * c.width : 0);
    for (int s = 0; s < kStatusWords; ++s) status[s] = 0;
    Buffer<char> workspace(cuda::lloyd_step_workspace(x, c.k, c.update));
    cuda::lloyd_step({x, centers.get(), c.k, label_out.get(), c.distances ? squared_out.get() : nullptr,
                      inertia_out.get(), c.update ? sum_out.get() : nullptr,
                      c.update ? count_out.get() : nullptr, rechecked.get(), status.get(), workspace.get()},
                     0, nullptr);

    for (int64_t i = 0; i < c.n; ++i) {
        expect(label_out[i] == labels[i], "labels", where);
        expect(!c.distances || squared_out[i] == squared[i], "distances", where);
    }
    expect(inertia_out[0] == inertia || std::fabs(inertia_out[0] / inertia - 1) < 1e-13, "inertia", where);
    for (int64_t k = 0; c.update && k < c.k; ++k) expect(count_out[k] == counts[k], "counts", where);
    for (int64_t i = 0; c.update && i < c.k * c.width; ++i) expect(sum_out[i] == sums[i], "sums", where);
    expect(rechecked[0] >= faults && rechecked[0] <= c.n, "rows looked at again", where);
    expect(status[kNonfiniteCount] == faults && status[kNonfiniteRows] == faults &&
               status[kNonfiniteFromEnd] == from_end,
           "status", where);
}

}  // namespace

int main(int count, char**) {
    if (count > 1) {
        step({DType::float32, 150, 40, 5, 0, 0, true, true, true});   // two windows, several tiles and spans
        step({DType::float32, 20, 7, 16, 1, 0, false, true, false});  // two groups of threads a tile
        step({DType::float32, 40, 100, 8, 0, 0, false, true, false});  // two columns a thread
        step({DType::float32, 135, 40, 40, 0, 0, true, true, true});  // two tiles of rows, and of centres
        std::puts("right");
        return 0;
    }
    for (int code = 0; code < 4; ++code) {
        const auto dtype = static_cast<DType>(code);
        step({dtype, 75, 40, 5, 0, 0, true, true, false});
        step({dtype, 40, 33, 16, 1, 0, false, true, true});
        step({dtype, 35, 16, 40, 0, 0, true, true, false});
    }
    step({DType::float32, 300, 7, 3, 0, 1'000'000, false, true, false});
    step({DType::float32, 20, 600, 8, 0, 0, false, true, false});
    step({DType::float16, 20, 70, 140, 1, 0, true, false, true});
    step({DType::float32, 140, 300, 300, 0, 0, false, true, true});
    step({DType::float64, 5, 600, 20, 0, 0, true, true, false});
    step({DType::float32, 0, 4, 2, 0, 0, false, true, true});
    step({DType::float32, 3, 0, 20, 0, 0, false, true, true});
    std::puts("right");
}
