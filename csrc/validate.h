// The checks that every launcher makes before it reads anything: argument, expected, found.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "resque.h"
#include "value_bins.h"

namespace resque {

inline void expect(bool holds, const char* argument, const char* expected, int64_t found) {
    if (!holds) {
        throw std::invalid_argument(std::string(argument) + ": expected " + expected + ", found " +
                                    std::to_string(found));
    }
}

constexpr int64_t kMaxRows = (int64_t{1} << 31) - 1;  // `order` holds rows as int32

inline void validate(const ClassOrder& a) {
    expect(a.n >= 0 && a.n <= kMaxRows, "n", "0 <= n < 2^31 labels", a.n);
    expect(a.classes >= 1, "classes", "at least 1", a.classes);
    expect(a.blocks >= 1, "blocks", "at least 1", a.blocks);
    expect(a.classes <= kMaxRows / a.blocks, "classes", "classes * blocks < 2^31", a.classes);
}

inline void validate(const Features& x) {
    expect(x.n >= 0 && x.n <= kMaxRows, "n", "0 <= n < 2^31 rows", x.n);
    expect(x.channels >= 0, "channels", "at least 0", x.channels);
    expect(x.positions >= 1, "positions", "at least 1", x.positions);
    const bool one = x.channels == 0 || (x.channels == 1 && x.positions == 1);
    expect(one || x.stride_c == 1 || (x.positions > 1 && x.stride_p == 1), "stride_c",
           "1, or stride_p 1 with several positions", x.stride_c);
}

inline void validate(const SpatialMean& a) { validate(a.x); }

inline void validate(const ClassMoments& a) {
    validate(a.x);
    expect(a.groups >= 1 && a.groups <= kMaxRows, "groups", "1 <= groups < 2^31", a.groups);
}

inline void validate(const RowDistances& a) {
    validate(a.x_old);
    validate(a.x_new);
    expect(a.x_old.dtype == a.x_new.dtype, "x_new.dtype", "that of x_old",
           static_cast<int64_t>(a.x_new.dtype));
    expect(a.x_old.n == a.x_new.n, "x_new.n", "as many rows as x_old has", a.x_new.n);
    expect(a.x_old.channels == a.x_new.channels, "x_new.channels", "as many as x_old has",
           a.x_new.channels);
    expect(a.x_old.positions == a.x_new.positions, "x_new.positions", "as many as x_old has",
           a.x_new.positions);
    expect(a.x_old.channels >= 1 && a.x_old.channels <= kMaxRows, "channels", "1 <= channels < 2^31",
           a.x_old.channels);
    expect(a.bin_counts >= 1 && a.bin_counts <= kMaxBinCounts, "bin_counts", "1 to 64 of them",
           a.bin_counts);
    for (int64_t k = 0; k < a.bin_counts; ++k) {
        expect(a.bins[k] >= 2 && a.bins[k] <= 256, "bins", "2 to 256 bins", a.bins[k]);
    }
}

inline void validate(const ValueHistogram& a) {
    validate(a.x);
    const bool one_row = a.x.n == 1 && a.x.positions == 1;
    expect(a.by_channel || one_row, "x", "one row of values side by side, or by_channel", a.x.n);
    const ValueBins bins(a.x.dtype, 16);
    expect(a.bits > ValueBins::exponent_bits(a.x.dtype) && a.bits <= std::min(bins.width, 20), "bits",
           "the sign, the exponent and at most 20 or the width of the type", a.bits);
}

inline void validate(const PairCounts& a) {
    expect(a.n >= 0 && a.n <= kMaxRows, "n", "0 <= n < 2^31 labels", a.n);
    expect(a.count_a >= 1 && a.count_a <= kMaxRows, "count_a", "1 <= count_a < 2^31", a.count_a);
    expect(a.count_b >= 1 && a.count_b <= kMaxRows, "count_b", "1 <= count_b < 2^31", a.count_b);
}

inline void validate(const LloydStep& a) {
    validate(a.x);
    expect(a.x.positions == 1, "positions", "1", a.x.positions);
    expect(a.k >= 1 && a.k <= kMaxRows, "k", "1 <= k < 2^31 centres", a.k);
}

}  // namespace resque
