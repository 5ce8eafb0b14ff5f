// class_order: small inputs of every kind, or `many` tiles, more than a block has threads.
#include "class_order.h"

int main(int count, char** arguments) {
    if (count > 1) {
        sort_rows<int32_t>(std::atoll(arguments[1]) * 2'048, 5, 1, 1, false, false);
    } else {
        sort_rows<int64_t>(0, 3, 2, 1, false, false);
        sort_rows<int64_t>(1, 1, 1, 1, false, false);
        sort_rows<int32_t>(2'049, 3, 1, 2, false, true);
        sort_rows<int64_t>(2'100, 300, 3, 3, true, true);
        sort_rows<int32_t>(500, 65'536, 1, 1, false, true);
    }
    std::puts("right");
}
