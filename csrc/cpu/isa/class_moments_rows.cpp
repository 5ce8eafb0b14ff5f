// The inner loops of class_moments. Compiled once for each instruction set: see isa.h.
#include "cpu/class_moments_rows.h"

#include "cpu/lanes.h"

namespace resque::cpu::RESQUE_ISA {

// R: the number of rows where it is known when compiled, else 0.
template <int R, typename T, bool Squares>
RESQUE_INLINE void add_columns(const T* const* row, int rows, const T* const* ahead, int64_t width,
                               double* sum, double* sumsq) {
    constexpr int64_t kLine = 64 / sizeof(T);
    const int count = R ? R : rows;
    const auto add8 = [&](int64_t c) RESQUE_INLINE_LAMBDA {
        // The rows among themselves first: an eighth of the roundings in the long sum.
        Double8 s = load8(row[0] + c), q{};
        if constexpr (Squares) q = s * s;
        for (int r = 1; r < count; ++r) {
            const Double8 x = load8(row[r] + c);
            s += x;
            if constexpr (Squares) q += x * x;
        }
        s += load8(sum + c);
        std::memcpy(sum + c, &s, sizeof s);
        if constexpr (Squares) {
            q += load8(sumsq + c);
            std::memcpy(sumsq + c, &q, sizeof q);
        }
    };
    int64_t c = 0;
    for (; c + kLine <= width; c += kLine) {
        // A line of each row in turn: measured faster than row after row.
        for (int r = 0; r < count; ++r) __builtin_prefetch(ahead[r] + c);
        for (int64_t k = 0; k < kLine; k += 8) add8(c + k);
    }
    for (; c + 8 <= width; c += 8) add8(c);
    for (; c < width; ++c) {
        double s = 0, q = 0;
        for (int r = 0; r < count; ++r) {
            const double x = load1(row[r] + c);
            s += x;
            if constexpr (Squares) q += x * x;
        }
        sum[c] += s;
        if constexpr (Squares) sumsq[c] += q;
    }
}

template <typename T, bool Squares>
void add_rows(const T* const* row, int rows, const T* const* ahead, int64_t width, double* sum,
              double* sumsq) {
    if (rows == 8) {
        add_columns<8, T, Squares>(row, rows, ahead, width, sum, sumsq);
    } else {
        add_columns<0, T, Squares>(row, rows, ahead, width, sum, sumsq);
    }
}

template <typename T>
void pool_row(const Features& x, const T* row, double* mean) {
    const double positions = static_cast<double>(x.positions);
    if (x.stride_c == 1) {  // channels side by side: positions are rows to add
        for (int64_t c = 0; c < x.channels; ++c) mean[c] = 0;
        for (int64_t p = 0; p < x.positions; p += 8) {
            const int some = static_cast<int>(p + 8 <= x.positions ? 8 : x.positions - p);
            const T* at[8];
            for (int r = 0; r < some; ++r) at[r] = row + (p + r) * x.stride_p;
            add_rows<T, false>(at, some, at, x.channels, mean, nullptr);
        }
        for (int64_t c = 0; c < x.channels; ++c) mean[c] /= positions;
        return;
    }
    for (int64_t c = 0; c < x.channels; ++c) {
        const T* p = row + c * x.stride_c;
        Double8 lanes[2] = {};
        int64_t i = 0;
        for (; i + 16 <= x.positions; i += 16) {
            lanes[0] += load8(p + i);
            lanes[1] += load8(p + i + 8);
        }
        if (i + 8 <= x.positions) lanes[0] += load8(p + i), i += 8;
        const Double8 v = lanes[0] + lanes[1];
        double sum = ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
        for (; i < x.positions; ++i) sum += load1(p + i);
        mean[c] = sum / positions;
    }
}

#define RESQUE_INSTANTIATE(T)                                                                  \
    template void add_rows<T, true>(const T* const*, int, const T* const*, int64_t, double*,   \
                                    double*);                                                  \
    template void add_rows<T, false>(const T* const*, int, const T* const*, int64_t, double*,  \
                                     double*);                                                 \
    template void pool_row<T>(const Features&, const T*, double*);
RESQUE_INSTANTIATE(float)
RESQUE_INSTANTIATE(double)
RESQUE_INSTANTIATE(Half)
RESQUE_INSTANTIATE(BFloat)

}  // namespace resque::cpu::RESQUE_ISA
