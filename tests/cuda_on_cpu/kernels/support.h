// What the drivers share that run CUDA launchers on small inputs, in buffers of exactly their size, and
// compare with loops. A driver prints "right", or what went wrong first.
#pragma once

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

inline void stop(const std::string& what) {
    std::printf("wrong: %s\n", what.c_str());
    std::exit(0);
}

inline void expect(bool right, const char* what, const std::string& where) {
    if (!right) stop(std::string(what) + " of " + where);
}

struct Random {
    uint64_t state = 1;
    int64_t below(int64_t n) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<int64_t>((state >> 33) % n);
    }
};

// Whole numbers from -8 to 8, whose sums and means over 4 and 16 positions are exact in every dtype.
inline void store(char* at, DType dtype, double value) {
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

}  // namespace
