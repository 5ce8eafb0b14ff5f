// row_distances: what takes a warp a segment of a row - many bins, or long rows.
#include "row_distances.h"

int main() {
    for (int code = 0; code < 4; ++code) {
        const auto dtype = static_cast<DType>(code);
        measure({dtype, 9, 88, 1, {130, 65, 64}, false, true, 0});
        measure({dtype, 2, 4000, 1, {16, 32, 64}, false, false, 0});
        measure({dtype, 3, 77, 1, {256}, false, true, 1});
        measure({dtype, 2, 24, 4, {66, 12}, true, true, 1});
    }
    measure({DType::float32, 40, 9, 1, {200, 2}, false, true, 0, false});
    std::puts("right");
}
