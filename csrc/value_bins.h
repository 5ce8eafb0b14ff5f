// The bins of value_histogram: which patterns are finite, and where each stands in the order of the
// values.
#pragma once

#include "resque.h"

namespace resque {

// A pattern is the top `bits` bits of a value: its sign, then its magnitude.
struct ValueBins {
    int width;        // bits of the type: 16, or 32, to which float64 is cut
    int shift;        // bits of a value that its pattern leaves out
    uint32_t half;    // magnitudes, so patterns from here on have the sign set
    uint32_t finite;  // magnitudes below this one are finite; from it on, infinity and NaN

    ValueBins(DType dtype, int64_t bits) {
        width = dtype == DType::float16 || dtype == DType::bfloat16 ? 16 : 32;
        shift = width - static_cast<int>(bits);
        half = uint32_t{1} << (bits - 1);
        const int exponent = exponent_bits(dtype);
        finite = ((uint32_t{1} << exponent) - 1) << (bits - 1 - exponent);
    }

    static int exponent_bits(DType dtype) { return dtype == DType::float16 ? 5 : 8; }

    int64_t bins() const { return 2 * int64_t{half}; }
};

}  // namespace resque
