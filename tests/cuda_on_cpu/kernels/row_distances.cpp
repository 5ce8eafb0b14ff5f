// row_distances: short rows, a warp several pairs at a time; or `many` pairs, of two numbers of bins.
#include "row_distances.h"

int main(int count, char** arguments) {
    if (count > 1) {
        measure({DType::float32, std::atoll(arguments[1]), 8, 1, {2, 4}, false, true, 0, false});
    } else {
        for (int code = 0; code < 4; ++code) {
            const auto dtype = static_cast<DType>(code);
            measure({dtype, 12, 40, 1, {16, 32, 64}, false, true, 0});
            measure({dtype, 3, 200, 1, {3, 12, 5, 64}, false, false, 0});
            measure({dtype, 5, 7, 1, {5, 10}, false, true, 1});
            measure({dtype, 4, 8, 4, {6}, false, true, 0});
            measure({dtype, 4, 5, 4, {4, 2}, true, false, 1});
        }
        measure({DType::float32, 70, 16, 1, {8, 4}, false, true, 0});
        measure({DType::float32, 1, 1, 1, {2}, false, true, 0});
        measure({DType::float32, 0, 4, 1, {2}, false, true, 0});
    }
    std::puts("right");
}
