// One dispatch from a dtype at run time to a C++ type, for the CPU's and for CUDA's half types.
#pragma once

#include <stdexcept>
#include <string>

#include "resque.h"

namespace resque {

template <typename T>
struct Type {
    using type = T;
};

// Calls f(Type<T>{}) for the type that `dtype` names. Half and BFloat are the two 16-bit types of the
// side that asks: the CPU's own, or __half and __nv_bfloat16.
template <typename Half, typename BFloat, typename F>
void dispatch(DType dtype, F&& f) {
    switch (dtype) {
        case DType::float32: return f(Type<float>{});
        case DType::float64: return f(Type<double>{});
        case DType::float16: return f(Type<Half>{});
        case DType::bfloat16: return f(Type<BFloat>{});
    }
    throw std::invalid_argument("dtype: expected a code from 0 to 3, found " +
                                std::to_string(static_cast<int>(dtype)));
}

// The switch of a compile-time flag: f(std::true_type{}) or f(std::false_type{}).
template <typename F>
void dispatch_bool(bool flag, F&& f) {
    if (flag) {
        f(std::true_type{});
    } else {
        f(std::false_type{});
    }
}

}  // namespace resque
