// The checks that every launcher makes before it reads anything: argument, expected, found.
#pragma once

#include <stdexcept>
#include <string>

#include "resque.h"

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

}  // namespace resque
