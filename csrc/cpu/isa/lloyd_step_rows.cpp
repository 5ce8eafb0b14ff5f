// The inner loops of lloyd_step. Compiled once for each instruction set: see isa.h.
#include "cpu/lloyd_step_rows.h"

#include "cpu/lanes.h"

namespace resque::cpu::RESQUE_ISA {
namespace {

// A vector of the machine, and a product-sum: fused where the machine can, for that is its speed. The
// accumulators of a tile, two vectors of rows for every centre, fill its registers; so do the rows that
// are measured together, each with eight lanes of float64.
#if defined(__AVX512F__)
constexpr int kBytes = 64, kTile = 12, kTogether = 4;
#elif defined(__AVX2__)
constexpr int kBytes = 32, kTile = 6, kTogether = 2;
#else
constexpr int kBytes = 16, kTile = 6, kTogether = 1;
#endif

template <typename Real>
struct Vector;
template <>
struct Vector<float> {
    using type = float __attribute__((vector_size(kBytes)));
    using Index = int32_t __attribute__((vector_size(kBytes)));
};
template <>
struct Vector<double> {
    using type = double __attribute__((vector_size(kBytes)));
    using Index = int64_t __attribute__((vector_size(kBytes)));
};
template <typename Real>
using Lanes = typename Vector<Real>::type;
template <typename Real>
constexpr int kLanes = kBytes / sizeof(Real);

RESQUE_INLINE Lanes<float> multiply_add(Lanes<float> a, Lanes<float> b, Lanes<float> c) {
#if defined(__AVX512F__)
    return (Lanes<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Lanes<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

RESQUE_INLINE Lanes<double> multiply_add(Lanes<double> a, Lanes<double> b, Lanes<double> c) {
#if defined(__AVX512F__)
    return (Lanes<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
    return (Lanes<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
    return a * b + c;
#endif
}

// --- Rows, centred and turned

template <typename Real, typename T>
RESQUE_INLINE Lanes<Real> load(const T* p) {
    if constexpr (sizeof(T) == sizeof(Real)) {
        return load_bits<Lanes<Real>>(p);
    } else {  // a 16-bit type, as float32
        Lanes<Real> v;
        for (int i = 0; i < kLanes<Real>; i += 8) {
            T values[8] = {};
            constexpr int some = kLanes<Real> < 8 ? kLanes<Real> : 8;
            std::memcpy(values, p + i, some * sizeof(T));
            const Float8 part = load8_single(values);
            std::memcpy(reinterpret_cast<Real*>(&v) + i, &part, some * sizeof(Real));
        }
        return v;
    }
}

template <typename Real>
RESQUE_INLINE Lanes<Real> broadcast(Real x) {
    return x - Lanes<Real>{};  // not plus: that would be an addition, for the sake of -0
}

template <int... I>
struct Lane {};
template <int n, int... I>
struct Count : Count<n - 1, n - 1, I...> {};
template <int... I>
struct Count<0, I...> {
    using type = Lane<I...>;
};

// Of G units of U lanes in `a`, then as many in `b`, the even ones or the odd ones, in every group of G.
template <int U, int G, int Odd, typename V, int... I>
RESQUE_INLINE V every_other(V a, V b, Lane<I...>) {
    constexpr int n = sizeof...(I);
    constexpr auto source = [](int i) {
        const int unit = 2 * (i % (G * U) / U) + Odd;
        return (unit < G ? 0 : n - G * U) + i / (G * U) * (G * U) + unit * U + i % U;
    };
    return __builtin_shufflevector(a, b, source(I)...);
}

// Transposes G vectors of G units: the evens of all pairs, then the odds, as often as G can be halved.
template <int U, int G, int N, typename V>
RESQUE_INLINE void turn(V* v, int stride) {
    using All = typename Count<N>::type;
#pragma GCC unroll 4
    for (int s = 1; s < G; s *= 2) {
        V next[G];
#pragma GCC unroll 4
        for (int i = 0; i < G; i += 2) {
            next[i / 2] = every_other<U, G, 0>(v[i * stride], v[(i + 1) * stride], All{});
            next[(G + i) / 2] = every_other<U, G, 1>(v[i * stride], v[(i + 1) * stride], All{});
        }
#pragma GCC unroll 4
        for (int i = 0; i < G; ++i) v[i * stride] = next[i];
    }
}

// Transposes N vectors of N lanes: inside 128 bits first, where every machine can, then those among them.
template <int N, typename V>
RESQUE_INLINE void transpose(V (&v)[N]) {
    constexpr int lanes = 16 * N / sizeof(V), parts = N / lanes;
#pragma GCC unroll 4
    for (int i = 0; i < N; i += lanes) turn<1, lanes, N>(v + i, 1);
#pragma GCC unroll 4
    for (int i = 0; i < lanes; ++i) turn<lanes, parts, N>(v + i, lanes);
}

// --- The product

RESQUE_INLINE void prefetch(Lines& ahead) {
    __builtin_prefetch(ahead.row + 64 * ahead.next, 0, 2);
    if (++ahead.next == ahead.width) ahead.row += ahead.stride, ahead.next = 0;
}

template <typename Real, int C>
RESQUE_INLINE void product_tile(const Real* y, const Real* panel, int64_t width, bool add,
                                Real* scores, Lines& ahead, int64_t lines) {
    Lanes<Real> sum[C][2] = {};
    for (int64_t c = 0; c < width; ++c) {
        for (int i = 0; i < 2 && lines > 0; ++i, --lines) prefetch(ahead);
        const Lanes<Real> low = load<Real>(y), high = load<Real>(y + kLanes<Real>);
        for (int k = 0; k < C; ++k) {
            const Lanes<Real> center = broadcast(panel[k]);
            sum[k][0] = multiply_add(low, center, sum[k][0]);
            sum[k][1] = multiply_add(high, center, sum[k][1]);
        }
        y += kRows<Real>;
        panel += C;
    }
    for (int k = 0; k < C; ++k) {
        for (int half = 0; half < 2; ++half) {
            Real* to = scores + k * kRows<Real> + half * kLanes<Real>;
            const Lanes<Real> total = add ? load<Real>(to) + sum[k][half] : sum[k][half];
            std::memcpy(to, &total, sizeof total);
        }
    }
}

template <typename Real, int C>
RESQUE_INLINE void product_of(const Real* y, const Real* panel, int64_t width, int64_t centers,
                              bool add, Real* scores, Lines& ahead, int64_t lines) {
    if (centers < C) {
        if constexpr (C > 1) {
            product_of<Real, C - 1>(y, panel, width, centers, add, scores, ahead, lines);
        }
        return;
    }
    for (int r = 0; r < kRows<Real>; r += 2 * kLanes<Real>) {
        product_tile<Real, C>(y + r, panel, width, add, scores + r, ahead, r == 0 ? lines : 0);
    }
}

// --- Distances

// Eight columns as float64, in vectors of the machine: Double8 in one piece is slow where it is not one.
struct Eight {
    static constexpr int kPieces = 8 / kLanes<double>;
    Lanes<double> piece[kPieces];
};

RESQUE_INLINE Lanes<double> widened(const float* p) {
#if defined(__AVX512F__)
    return (Lanes<double>)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(__AVX2__)
    return (Lanes<double>)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
    return Lanes<double>{p[0], p[1]};
#endif
}

template <typename T>
RESQUE_INLINE Eight load_eight(const T* p) {
    Eight v;
    if constexpr (sizeof(T) == 8) {
        for (int i = 0; i < Eight::kPieces; ++i) v.piece[i] = load<double>(p + i * kLanes<double>);
    } else if constexpr (sizeof(T) == 4) {
        for (int i = 0; i < Eight::kPieces; ++i) v.piece[i] = widened(p + i * kLanes<double>);
    } else {
        const Float8 narrow = load8_single(p);
        float values[8];
        std::memcpy(values, &narrow, sizeof values);
        for (int i = 0; i < Eight::kPieces; ++i) v.piece[i] = widened(values + i * kLanes<double>);
    }
    return v;
}

RESQUE_INLINE double add_up(const Eight& v) {
    double lane[8];
    std::memcpy(lane, &v, sizeof lane);
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

// Terms of up to 128 columns.
template <typename T>
RESQUE_INLINE double leaf(const T* x, const double* center, int64_t width) {
    Eight lanes{};
    int64_t c = 0;
    for (; c + 8 <= width; c += 8) {
        const Eight value = load_eight(x + c), at = load_eight(center + c);
        for (int i = 0; i < Eight::kPieces; ++i) {
            const Lanes<double> off = value.piece[i] - at.piece[i];
            lanes.piece[i] += off * off;
        }
    }
    double total = add_up(lanes);
    for (; c < width; ++c) {
        const double off = load1(x + c) - center[c];
        total += off * off;
    }
    return total;
}

template <int R, bool Add, typename T>
RESQUE_INLINE void measure_columns(const T* const* row, const double* center, int64_t width,
                                   double* squares, double* sum) {
    Eight lanes[R] = {};
    int64_t c = 0;
    for (; c + 8 <= width; c += 8) {
        const Eight at = load_eight(center + c);
        Eight total = Add ? load_eight(sum + c) : Eight{}, rows{};
        for (int r = 0; r < R; ++r) {
            const Eight x = load_eight(row[r] + c);
            for (int i = 0; i < Eight::kPieces; ++i) {
                const Lanes<double> off = x.piece[i] - at.piece[i];
                lanes[r].piece[i] = multiply_add(off, off, lanes[r].piece[i]);
                if constexpr (Add) rows.piece[i] = r == 0 ? x.piece[i] : rows.piece[i] + x.piece[i];
            }
        }
        if constexpr (Add) {
            for (int i = 0; i < Eight::kPieces; ++i) total.piece[i] += rows.piece[i];
            std::memcpy(sum + c, &total, sizeof total);
        }
    }
    for (int r = 0; r < R; ++r) squares[r] += add_up(lanes[r]);
    for (; c < width; ++c) {
        for (int r = 0; r < R; ++r) {
            const double x = load1(row[r] + c), off = x - center[c];
            squares[r] += off * off;
            if constexpr (Add) sum[c] += x;
        }
    }
}

template <int R, typename T>
RESQUE_INLINE void measure_of(const T* const* row, int rows, const double* center, int64_t width,
                              double* squares, double* sum) {
    if (rows < R) {
        if constexpr (R > 1) measure_of<R - 1>(row, rows, center, width, squares, sum);
    } else if (sum) {
        measure_columns<R, true>(row, center, width, squares, sum);
    } else {
        measure_columns<R, false>(row, center, width, squares, sum);
    }
}

}  // namespace

int tile_centers() { return kTile; }

template <typename T, typename Real>
void pack_rows(const T* x, int64_t stride, int64_t rows, const Real* origin, int64_t width, Real* y,
               Real* norm) {
    constexpr int n = kLanes<Real>;
    for (int64_t first = 0; first < kRows<Real>; first += n) {
        const T* row[n];
        for (int64_t r = 0; r < n; ++r) row[r] = x + (first + r < rows ? first + r : rows - 1) * stride;
        Lanes<Real> squares{};
        // Columns c and n - 1 more, of which there may be only `some`.
        const auto pack = [&](int64_t c, const T* const* from, int64_t at, int64_t some) RESQUE_INLINE_LAMBDA {
            const Lanes<Real> m = load<Real>(origin + c);
            Lanes<Real> v[n];
#pragma GCC unroll 16
            for (int r = 0; r < n; ++r) v[r] = load<Real>(from[r] + at) - m;
            transpose(v);
#pragma GCC unroll 16
            for (int64_t i = 0; i < n; ++i) {
                squares = multiply_add(v[i], v[i], squares);
                if (i < some) std::memcpy(y + (c + i) * kRows<Real> + first, &v[i], sizeof v[i]);
            }
        };
        int64_t c = 0;
        for (; c + n <= width; c += n) pack(c, row, c, n);
        if (c < width) {
            T rest[n][n] = {};
            const T* from[n];
            for (int r = 0; r < n; ++r) {
                std::memcpy(rest[r], row[r] + c, (width - c) * sizeof(T));
                from[r] = rest[r];
            }
            pack(c, from, 0, width - c);
        }
        squares += load<Real>(norm + first);
        std::memcpy(norm + first, &squares, sizeof squares);
    }
}

template <typename Real>
void product(const Real* y, const Real* panel, int64_t width, int64_t centers, bool add, Real* scores,
             Lines& ahead, int64_t lines) {
    product_of<Real, kTile>(y, panel, width, centers, add, scores, ahead, lines);
}

template <typename Real>
void nearest(const Real* scores, int64_t k, const Real* base, const Real* slope, const Real* norm,
             Nearest<Real>* out) {
    using Labels = typename Vector<Real>::Index;
    for (int r = 0; r < kRows<Real>; r += kLanes<Real>) {
        const Lanes<Real> length = load<Real>(norm + r);
        Lanes<Real> best = broadcast(static_cast<Real>(__builtin_inf())), second = best;
        Labels label{}, index{};
        for (int64_t c = 0; c < k; ++c) {
            const Lanes<Real> least =
                (base[c] - load<Real>(scores + c * kRows<Real> + r)) - slope[c] * length;
            const Lanes<Real> other = least < best ? best : least;
            second = other < second ? other : second;
            label = least < best ? index : label;
            best = least < best ? least : best;
            index += 1;
        }
        std::memcpy(out->best + r, &best, sizeof best);
        std::memcpy(out->second + r, &second, sizeof second);
        std::memcpy(out->label + r, &label, sizeof label);
    }
}

template <typename T>
double distance(const T* x, const double* center, int64_t width) {
    if (width <= 128) return leaf(x, center, width);
    const int64_t half = width / 2 / 8 * 8;
    const double first = distance(x, center, half);
    return first + distance(x + half, center + half, width - half);
}

template <typename T>
void measure(const T* const* row, int rows, const double* center, int64_t width, double* squares,
             double* sum) {
    for (int r = 0; r < rows; r += kTogether) {
        const int some = rows - r < kTogether ? rows - r : kTogether;
        measure_of<kTogether>(row + r, some, center, width, squares + r, sum);
    }
}

#define RESQUE_INSTANTIATE(T, Real)                                                                   \
    template void pack_rows<T, Real>(const T*, int64_t, int64_t, const Real*, int64_t, Real*, Real*); \
    template double distance<T>(const T*, const double*, int64_t);                                    \
    template void measure<T>(const T* const*, int, const double*, int64_t, double*, double*);
RESQUE_INSTANTIATE(float, float)
RESQUE_INSTANTIATE(double, double)
RESQUE_INSTANTIATE(Half, float)
RESQUE_INSTANTIATE(BFloat, float)

#define RESQUE_INSTANTIATE_PRODUCT(Real)                                                          \
    template void product<Real>(const Real*, const Real*, int64_t, int64_t, bool, Real*, Lines&,  \
                                int64_t);                                                         \
    template void nearest<Real>(const Real*, int64_t, const Real*, const Real*, const Real*,      \
                                Nearest<Real>*);
RESQUE_INSTANTIATE_PRODUCT(float)
RESQUE_INSTANTIATE_PRODUCT(double)

}  // namespace resque::cpu::RESQUE_ISA
