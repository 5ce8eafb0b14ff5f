// The inner loops of lloyd_step, for each instruction set. Real is float or double: what the fast product
// is computed in.
#pragma once

#include <type_traits>

#include "cpu/isa.h"

namespace resque::cpu {

// Rows of a block, side by side in 128 bytes: the product has rows across the lanes of its vectors.
template <typename Real>
constexpr int kRows = 128 / sizeof(Real);

template <typename Real>
using Index = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;

// What the product says of a block's rows: see nearest().
template <typename Real>
struct Nearest {
    Real best[kRows<Real>], second[kRows<Real>];
    Index<Real> label[kRows<Real>];
};

// Cache lines that will be wanted: `width` of a row, then those of the next row.
struct Lines {
    const char* row;
    int64_t stride, width, next;  // bytes from row to row; lines; the one of this row that comes next
};

#define RESQUE_DECLARE(set)                                                                         \
    namespace set {                                                                                 \
    /* Centres in a tile of the product. */                                                         \
    int tile_centers();                                                                             \
    /* y[c][r] = x[r][c] - origin[c] for `rows` rows, the last one again up to kRows, and */        \
    /* norm[r] += the squares. origin has zeros behind `width`, up to a multiple of 16. */          \
    template <typename T, typename Real>                                                            \
    void pack_rows(const T* x, int64_t stride, int64_t rows, const Real* origin, int64_t width,     \
                   Real* y, Real* norm);                                                            \
    /* scores[k][r] (+)= the sum over c of panel[c][k] y[c][r], for the centres of one tile; */     \
    /* meanwhile prefetches as many lines, two for every column at most. */                         \
    template <typename Real>                                                                        \
    void product(const Real* y, const Real* panel, int64_t width, int64_t centers, bool add,        \
                 Real* scores, Lines& ahead, int64_t lines);                                        \
    /* The least and the second least of (base[k] - scores[k][r]) - slope[k] norm[r], and where. */ \
    template <typename Real>                                                                        \
    void nearest(const Real* scores, int64_t k, const Real* base, const Real* slope,                \
                 const Real* norm, Nearest<Real>* out);                                             \
    /* The squared distance of a row from a centre, as resque.h defines it. */                      \
    template <typename T>                                                                           \
    double distance(const T* x, const double* center, int64_t width);                               \
    /* squares[r] += that of up to 4 rows, in another order; sum[c] += the rows, but for null. */   \
    template <typename T>                                                                           \
    void measure(const T* const* row, int rows, const double* center, int64_t width,                \
                 double* squares, double* sum);                                                     \
    }
RESQUE_FOR_EACH_ISA(RESQUE_DECLARE)
#undef RESQUE_DECLARE

}  // namespace resque::cpu
