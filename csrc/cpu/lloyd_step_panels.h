// The centres as lloyd_step's product reads them, and how wrong that product can be.
//
// With y = x - origin and c = center - origin, the squared distance is |y|^2 + 2 t, t = |c|^2 / 2 - y.c, and
// only t depends on the centre. It is computed in Real, float32 for all features but float64, with unit
// roundoff u; what follows bounds the error of the computed t by slack + slope |y|.
//   y and c are rounded to Real: 2 u |y||c|, and y's part again in |y| itself.
//   The product is a chain of sums over kColumns columns, and the chains of all blocks of columns are
//   added one after another: `chain` roundings, gamma |y||c| with gamma = chain u / (1 - chain u).
//   |y|, the root of a sum taken in the same chains, is too small by gamma |y| at most.
//   base = |c|^2 / 2 - slack is rounded, and so are the two operations that make
//   low = (base - y.c) - slope |y|: u (|c|^2 / 2 + |y||c|) each.
// Together less than (gamma + 12 u)(1 + 2 gamma) |c| of slope and 4 u |c|^2 of slack; gamma is under 0.12
// or nothing is certain. So low <= t <= low + 2 (slack + slope |y|).
//   Labels are defined by distances rounded in float64, each by less than a share of g = 64 2^-53 (3
//   roundings of a term, 26 in a leaf of the pairwise sum, then one a level). Two of them are in the
//   order of the exact ones where those differ by 2 g (1 + g) times the lesser, which is less than
//   2 |y|^2 + 2 |c|^2: 3 g |c|^2 more of slack in t, and a margin of 3 g |y|^2 for every row.
//   Underflow: `least`, the least normal number, for each of the 2 width + 4 operations and times |y| and
//   |c| for each rounded number, its root for every square in |y|.
// A centre whose numbers Real cannot hold is always a candidate: low = -infinity.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/lloyd_step_rows.h"
#include "cpu/parallel.h"

namespace resque::cpu {

constexpr int64_t kColumns = 256;  // of a block: one chain of sums
constexpr double kFloat64Share = 64 * 0x1p-53;

// Parts of a workspace, one after another, each on a cache line of its own.
class Space {
   public:
    explicit Space(void* start) : start_(reinterpret_cast<uintptr_t>(start)), next_(start_) {}

    template <typename T>
    T* take(int64_t count) {
        T* part = reinterpret_cast<T*>(next_);
        next_ += (count * sizeof(T) + 63) / 64 * 64;
        return part;
    }
    int64_t used() const { return static_cast<int64_t>(next_ - start_); }

   private:
    uintptr_t start_, next_;
};

template <typename Real>
struct Panels {
    int64_t k, width, tiles, blocks;
    double* wide_origin;  // [width]
    Real* origin;         // [width], then zeros up to a multiple of 16
    Real* packed;         // [block][tile][columns of the block][centres of the tile]
    Real* base;           // [k]
    Real* slope;          // [k]
    double* slack;        // [k], infinite for a centre that is always a candidate

    Panels(int64_t centers, int64_t columns, Space& space)
        : k(centers), width(columns), blocks(std::max<int64_t>((columns + kColumns - 1) / kColumns, 1)) {
        const int64_t tile = RESQUE_PICK(tile_centers());
        tiles = (k + tile - 1) / tile;
        wide_origin = space.take<double>(width);
        origin = space.take<Real>((width + 15) / 16 * 16);
        packed = space.take<Real>(k * width);
        base = space.take<Real>(k);
        slope = space.take<Real>(k);
        slack = space.take<double>(k);
    }

    int64_t first(int64_t tile) const { return tile * k / tiles; }
    int64_t columns(int64_t block) const { return std::min(kColumns, width - block * kColumns); }
    Real* panel(int64_t block, int64_t tile) const {
        return packed + block * kColumns * k + first(tile) * columns(block);
    }

    void fill(const double* centers, int threads) {
        choose_origin(centers);
        parallel_for(tiles, threads, 2 * k * width * 8, [&](int64_t t) { pack(centers, t); });
    }

   private:
    static constexpr double kUnit = std::numeric_limits<Real>::epsilon() / 2.0;
    static constexpr double kLeast = std::numeric_limits<Real>::min();
    static constexpr double kMost = std::numeric_limits<Real>::max();

    // Any origin is right; one amid the data makes the numbers, and so their errors, small. The median of
    // three centres, column by column, is one wherever a single centre has gone astray.
    void choose_origin(const double* centers) {
        const double *a = centers, *b = centers + k / 2 * width, *c = centers + (k - 1) * width;
        for (int64_t i = 0; i < width; ++i) {
            const double low = std::min(a[i], b[i]), high = std::max(a[i], b[i]);
            const double middle = std::max(low, std::min(high, c[i]));
            origin[i] = std::abs(middle) <= kMost ? static_cast<Real>(middle) : Real{0};
            wide_origin[i] = origin[i];
        }
        std::fill(origin + width, origin + (width + 15) / 16 * 16, Real{0});
    }

    void pack(const double* centers, int64_t tile) {
        const int64_t begin = first(tile), size = first(tile + 1) - begin;
        for (int64_t i = begin; i < begin + size; ++i) bound(centers + i * width, i);
        for (int64_t b = 0; b < blocks; ++b) {
            Real* to = panel(b, tile);
            for (int64_t c = b * kColumns; c < b * kColumns + columns(b); ++c) {
                for (int64_t i = begin; i < begin + size; ++i) {
                    const double off = centers[i * width + c] - wide_origin[c];
                    *to++ = std::isfinite(slack[i]) ? static_cast<Real>(off) : Real{0};
                }
            }
        }
    }

    void bound(const double* center, int64_t i) {
        const double columns = static_cast<double>(width), chain = std::min(width, kColumns) + blocks;
        const double gamma = chain * kUnit / (1 - chain * kUnit);
        const double square = distance_(center, wide_origin, width), length = std::sqrt(square);
        const double steep = length * (gamma + 12 * kUnit) * (1 + 2 * gamma) + 4 * columns * kLeast;
        slack[i] = (4 * kUnit + 3 * kFloat64Share) * square + 4 * (columns + 1) * kLeast * (1 + length) +
                   steep * columns * std::sqrt(kLeast);
        base[i] = static_cast<Real>(square / 2 - slack[i]);
        slope[i] = static_cast<Real>(steep);
        if (!(square <= kMost / 16 && chain * kUnit < 0.1)) {
            slack[i] = std::numeric_limits<double>::infinity();
            base[i] = -std::numeric_limits<Real>::infinity();
            slope[i] = Real{1};
        }
    }

    double (*distance_)(const double*, const double*, int64_t) = RESQUE_PICK(distance<double>);
};

}  // namespace resque::cpu
