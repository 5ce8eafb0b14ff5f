// The inner loops of class_moments. Compiled once for each instruction set: see isa.h.
#include "cpu/class_moments_rows.h"

#include "cpu/lanes.h"

namespace resque::cpu::RESQUE_ISA {

// Columns that are summed at once in registers: the accumulators, two of them for each eight lanes, stay
// there over all the rows.
#if defined(__AVX512F__)
constexpr int kStrip = 64;
#elif defined(__AVX2__)
constexpr int kStrip = 16;
#else
constexpr int kStrip = 8;
#endif
constexpr int kPiece = 64;  // columns that are asked for at once, a whole number of lines

// The rows to come, row after row and piece by piece: one step for each piece that is summed, so that
// memory is asked evenly. Row after row, because the next line of the same page is the cheapest to get.
template <typename T>
struct Pieces {
    const T* const* soon;
    const T* const* later;
    int64_t width, column = 0;

    RESQUE_INLINE void next() {
        constexpr int kLine = 64 / sizeof(T);
        if (!soon) return;
        const int64_t left = width - column;
        for (int64_t c = 0; c < (left < kPiece ? left : kPiece); c += kLine) {
            __builtin_prefetch(*later + column + c, 0, 2);
            __builtin_prefetch(*soon + column + c, 0, 2);
        }
        column += kPiece;
        if (column >= width) column = 0, ++soon, ++later;
    }
};

template <int Width, bool Squares, typename T, typename Next>
RESQUE_INLINE void add_strip(const T* const* row, int rows, int64_t c, bool fresh, double* sum,
                             double* sumsq, const Next& next) {
    // The rows among themselves first: a sixteenth of the roundings in the long sum.
    Double8 s[Width / 8] = {}, q[Width / 8] = {};
    for (int r = 0; r < rows; ++r) {
        next();
        const T* const at = row[r] + c;
        for (int k = 0; k < Width / 8; ++k) {
            const Double8 x = load8(at + 8 * k);
            s[k] += x;
            if constexpr (Squares) q[k] = add_square(q[k], x);
        }
    }
    for (int k = 0; k < Width / 8; ++k) {
        if (!fresh) s[k] += load8(sum + c + 8 * k);
        std::memcpy(sum + c + 8 * k, &s[k], sizeof s[k]);
        if constexpr (Squares) {
            if (!fresh) q[k] += load8(sumsq + c + 8 * k);
            std::memcpy(sumsq + c + 8 * k, &q[k], sizeof q[k]);
        }
    }
}

template <typename T, bool Squares>
void add_rows(const T* const* row, int rows, const T* const* soon, const T* const* later, int64_t width,
              bool fresh, double* sum, double* sumsq) {
    Pieces<T> ahead{soon, later, width};
    const auto ask = [&]() RESQUE_INLINE_LAMBDA { ahead.next(); };
    const auto rest = []() RESQUE_INLINE_LAMBDA {};
    int64_t c = 0;
    for (; c + kPiece <= width; c += kPiece) {
        add_strip<kStrip, Squares>(row, rows, c, fresh, sum, sumsq, ask);
        for (int s = kStrip; s < kPiece; s += kStrip) {
            add_strip<kStrip, Squares>(row, rows, c + s, fresh, sum, sumsq, rest);
        }
    }
    if (c == width) return;
    for (int r = 0; r < rows; ++r) ahead.next();
    // Wide strips first: each addition waits for the one before in its column, so that eight columns
    // alone leave most of the adders idle.
    if constexpr (kStrip > 32) {
        if (c + 32 <= width) add_strip<32, Squares>(row, rows, c, fresh, sum, sumsq, rest), c += 32;
    }
    if constexpr (kStrip > 8) {
        for (; c + 16 <= width; c += 16) add_strip<16, Squares>(row, rows, c, fresh, sum, sumsq, rest);
    }
    for (; c + 8 <= width; c += 8) add_strip<8, Squares>(row, rows, c, fresh, sum, sumsq, rest);
    for (; c < width; ++c) {
        double s = 0, q = 0;
        for (int r = 0; r < rows; ++r) {
            const double x = load1(row[r] + c);
            s += x;
            if constexpr (Squares) q += x * x;
        }
        sum[c] = fresh ? s : sum[c] + s;
        if constexpr (Squares) sumsq[c] = fresh ? q : sumsq[c] + q;
    }
}

template <typename T>
void pool_row(const Features& x, const T* row, double* mean) {
    const double positions = static_cast<double>(x.positions);
    if (x.stride_c == 1) {  // channels side by side: positions are rows to add
        for (int64_t p = 0; p < x.positions; p += 8) {
            const int some = static_cast<int>(p + 8 <= x.positions ? 8 : x.positions - p);
            const T* at[8];
            for (int r = 0; r < some; ++r) at[r] = row + (p + r) * x.stride_p;
            add_rows<T, false>(at, some, nullptr, nullptr, x.channels, p == 0, mean, nullptr);
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

namespace {

using Long8 = int64_t __attribute__((vector_size(64)));

RESQUE_INLINE Double8 magnitude(Double8 x) { return (Double8)((Long8)x & INT64_MAX); }

// Where every bit is set that tells a finite number; infinity and NaN have all of the exponent's.
RESQUE_INLINE Long8 finite(Double8 x) { return magnitude(x) <= __DBL_MAX__; }

// A strip of columns: what each addition rounds off is exact, and added up by itself.
template <int Vectors>
RESQUE_INLINE void add_slots_strip(const double* const* slot, int64_t slots, int64_t c, double* out) {
    Double8 sum[Vectors] = {}, lost[Vectors] = {};
    for (int64_t s = 0; s < slots; ++s) {
        for (int k = 0; k < Vectors; ++k) {
            const Double8 x = load8(slot[s] + c + 8 * k), next = sum[k] + x;
            const Long8 kept = magnitude(sum[k]) >= magnitude(x);
            const Double8 large = kept ? sum[k] : x, small = kept ? x : sum[k];
            lost[k] += (large - next) + small;
            sum[k] = next;
        }
    }
    for (int k = 0; k < Vectors; ++k) {
        // Where the sum left the finite numbers `lost` is NaN, and the sum alone is the answer.
        const Double8 result = finite(sum[k]) ? sum[k] + lost[k] : sum[k];
        std::memcpy(out + c + 8 * k, &result, sizeof result);
    }
}

}  // namespace

void add_slots(const double* const* slot, int64_t slots, int64_t width, double* out) {
    int64_t c = 0;
    for (; c + 32 <= width; c += 32) add_slots_strip<4>(slot, slots, c, out);
    for (; c + 8 <= width; c += 8) add_slots_strip<1>(slot, slots, c, out);
    for (; c < width; ++c) {  // the compiler's own scalars, by the same steps
        double sum = 0, lost = 0;
        for (int64_t s = 0; s < slots; ++s) {
            const double x = slot[s][c], next = sum + x;
            const bool kept = __builtin_fabs(sum) >= __builtin_fabs(x);
            lost += kept ? (sum - next) + x : (x - next) + sum;
            sum = next;
        }
        out[c] = __builtin_fabs(sum) <= __DBL_MAX__ ? sum + lost : sum;
    }
}

bool all_finite(const double* values, int64_t count) {
    Long8 good = ~Long8{};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) good &= finite(load8(values + i));
    int64_t all = good[0] & good[1] & good[2] & good[3] & good[4] & good[5] & good[6] & good[7];
    for (; i < count; ++i) all &= -int64_t{__builtin_fabs(values[i]) <= __DBL_MAX__};
    return all != 0;
}

#define RESQUE_INSTANTIATE(T)                                                                       \
    template void add_rows<T, true>(const T* const*, int, const T* const*, const T* const*, int64_t, \
                                    bool, double*, double*);                                        \
    template void add_rows<T, false>(const T* const*, int, const T* const*, const T* const*, int64_t, \
                                     bool, double*, double*);                                       \
    template void pool_row<T>(const Features&, const T*, double*);
RESQUE_INSTANTIATE(float)
RESQUE_INSTANTIATE(double)
RESQUE_INSTANTIATE(Half)
RESQUE_INSTANTIATE(BFloat)

}  // namespace resque::cpu::RESQUE_ISA
