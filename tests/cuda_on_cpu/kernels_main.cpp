// Runs the CUDA launchers on small inputs, in buffers of exactly their size, and compares with loops.
//
//   kernels order|moments          small ones of every kind
//   kernels order-many TILES       more tiles than a block has threads, more windows than blocks are
//   kernels moments-many WINDOWS   launched: shared memory is then used more than once
//
// prints "right", or what went wrong first.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "resque.h"

using namespace resque;

namespace {

// Memory as malloc gives it: not one byte more, and nothing written.
template <typename T>
struct Buffer {
    explicit Buffer(int64_t size) : data(static_cast<T*>(std::malloc(size * sizeof(T))), std::free) {
        std::memset(data.get(), 0xff, size * sizeof(T));
    }
    T& operator[](int64_t i) const { return data.get()[i]; }
    T* get() const { return data.get(); }
    std::unique_ptr<T, void (*)(void*)> data;
};

void stop(const std::string& what) {
    std::printf("wrong: %s\n", what.c_str());
    std::exit(0);
}

void expect(bool right, const char* what, const std::string& where) {
    if (!right) stop(std::string(what) + " of " + where);
}

struct Random {
    uint64_t state = 1;
    int64_t below(int64_t n) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<int64_t>((state >> 33) % n);
    }
};

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

// Whole numbers from -8 to 8, whose sums and means over 4 and 16 positions are exact in every dtype.
void store(char* at, DType dtype, double value) {
    const float single = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    uint16_t half = static_cast<uint16_t>(bits >> 16);  // bfloat16
    if (dtype == DType::float64) {
        std::memcpy(at, &value, 8);
    } else if (dtype == DType::float32) {
        std::memcpy(at, &single, 4);
    } else {
        const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
        if (dtype == DType::float16) {
            const int exponent = static_cast<int>(bits >> 23 & 0xff);
            half = sign | static_cast<uint16_t>(exponent == 0     ? 0
                                                : exponent == 255 ? 0x7c00 | (bits >> 13 & 0x3ff)
                                                                  : (exponent - 112) << 10 | (bits >> 13 & 0x3ff));
        }
        std::memcpy(at, &half, 2);
    }
}

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
    const std::string name = arguments[1];
    const int64_t many = count > 2 ? std::atoll(arguments[2]) : 0;
    if (name == "order") {
        sort_rows<int64_t>(0, 3, 2, 1, false, false);
        sort_rows<int64_t>(1, 1, 1, 1, false, false);
        sort_rows<int32_t>(2'049, 3, 1, 2, false, true);
        sort_rows<int64_t>(2'100, 300, 3, 3, true, true);
        sort_rows<int32_t>(500, 65'536, 1, 1, false, true);
    } else if (name == "order-many") {
        sort_rows<int32_t>(many * 2'048, 5, 1, 1, false, false);
    } else if (name == "moments") {
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
    } else if (name == "moments-many") {
        // Windows of 16 rows, and a class about two of them: there are leaders everywhere.
        add_up({DType::float32, many * 16, 1, 1, many / 2, false, true, false, 0});
    } else {
        stop("no such name: " + name);
    }
    std::puts("right");
}
