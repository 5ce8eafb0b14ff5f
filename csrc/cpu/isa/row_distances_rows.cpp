// The inner loops of row_distances. Compiled once for each instruction set: see isa.h.
#include "cpu/row_distances_rows.h"

#include "cpu/lanes.h"

namespace resque::cpu::RESQUE_ISA {
namespace {

using Int8 = int32_t __attribute__((vector_size(32)));
using Long8 = int64_t __attribute__((vector_size(64)));
using Double4 = double __attribute__((vector_size(32)));

RESQUE_INLINE Double8 load8_binned(const double* p) { return load8(p); }
template <typename T>
RESQUE_INLINE Float8 load8_binned(const T* p) {
    return load8_single(p);
}

// Eight lanes of float and double, and of the integers as wide as they are.
template <typename X>
struct Lanes;
template <>
struct Lanes<float> {
    using Values = Float8;
    using Ints = Int8;
    static constexpr int32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;
    static constexpr float kWhole = 0x1.8p23f;  // added, it leaves a rounded integer in the low bits
};
template <>
struct Lanes<double> {
    using Values = Double8;
    using Ints = Long8;
    static constexpr int64_t kMagnitude = 0x7fffffffffffffff, kInfinity = 0x7ff0000000000000;
    static constexpr double kWhole = 0x1.8p52;
};

// A line of counts.
template <typename Count>
struct LineOf;
template <>
struct LineOf<uint16_t> {
    typedef uint16_t type __attribute__((vector_size(kLine)));
};
template <>
struct LineOf<uint32_t> {
    typedef uint32_t type __attribute__((vector_size(kLine)));
};

template <typename V>
RESQUE_INLINE V lesser(V a, V b) {
    return a < b ? a : b;
}
template <typename V>
RESQUE_INLINE V greater(V a, V b) {
    return a > b ? a : b;
}

// One of eight lanes, taken by halves: lane by lane would branch on what a row holds.
template <typename V, typename Take>
RESQUE_INLINE auto taken(V v, const Take& take) {
    v = take(__builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3), v);
    v = take(__builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5), v);
    v = take(__builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6), v);
    return v[0];
}

constexpr int64_t kChunk = 256;  // values of a row between two looks at the histograms

// Where in the histograms the values of a row belong. Value x is nearest to edge k = round((x - first)
// / step), or to the last inner one, bins - 1; it belongs above if x >= edge k, as numpy makes that
// edge, else below. No value is below edge 0. The caller has made sure that edges are at least two
// roundings apart, so that the bin is one of those two.
template <typename T>
RESQUE_INLINE void find_bins(const Stream<T>& s, const T* row, int64_t length, int bins, int lane,
                             uint16_t* place) {
    using X = Binned<T>;
    using L = Lanes<X>;
    using Ints = typename L::Ints;
    const typename L::Values whole = L::kWhole - typename L::Values{};
    const auto top = static_cast<X>(bins - 1) - typename L::Values{};
    const auto first = s.first - typename L::Values{}, step = s.step - typename L::Values{};
    const auto place8 = [&](const T* p, uint16_t* to) RESQUE_INLINE_LAMBDA {
        const auto x = load8_binned(p);
        const auto shifted = lesser((x - first) * s.scale, top) + whole;
        const auto edge = (shifted - whole) * step + first;
        const Ints k = (Ints)shifted - (Ints)whole + (Ints)(x < edge);
        const Ints at = k * kLanes<uint16_t> + lane;
        const Short8 narrow = __builtin_convertvector(at, Short8);
        std::memcpy(to, &narrow, sizeof narrow);
    };
    int64_t c = 0;
    for (; c + 8 <= length; c += 8) place8(row + c, place + c);
    if (c == length) return;
    T rest[8];
    for (int64_t k = 0; k < 8; ++k) rest[k] = row[c + k < length ? c + k : c];
    place8(rest, place + c);
}

#if defined(__AVX512VPOPCNTDQ__)
#include "cpu/row_masks.h"
#endif

}  // namespace

template <typename T>
bool row_range(const T* row, int64_t m, Binned<T>* least, Binned<T>* most) {
    using X = Binned<T>;
    using L = Lanes<X>;
    using Values = typename L::Values;
    using Ints = typename L::Ints;
    T rest[8];  // the end of the row, or all of it, its last value again and again
    const int64_t whole = m / 8 * 8;
    for (int64_t k = 0; k < 8; ++k) rest[k] = row[whole + k < m ? whole + k : m - 1];
    const Values start = load8_binned(rest);
    Values low[2] = {start, start}, high[2] = {start, start};
    Ints wide[2] = {(Ints)start & L::kMagnitude, (Ints)start & L::kMagnitude};
    const auto look = [&](const T* p, int k) RESQUE_INLINE_LAMBDA {
        const Values x = load8_binned(p);
        low[k] = lesser(x, low[k]);
        high[k] = greater(x, high[k]);
        wide[k] = greater((Ints)x & L::kMagnitude, wide[k]);
    };
    int64_t c = 0;
    for (; c + 16 <= whole; c += 16) look(row + c, 0), look(row + c + 8, 1);
    if (c < whole) look(row + c, 0);
    *least = taken(lesser(low[1], low[0]), lesser<Values>);
    *most = taken(greater(high[1], high[0]), greater<Values>);
    return taken(greater(wide[1], wide[0]), greater<Ints>) < L::kInfinity;
}

template <typename T>
void widen_row(const T* row, int64_t length, Binned<T>* to) {
    int64_t c = 0;
    for (; c + 8 <= length; c += 8) {
        const auto x = load8_binned(row + c);
        std::memcpy(to + c, &x, sizeof x);
    }
    for (; c < length; ++c) to[c] = static_cast<Binned<T>>(load1(row + c));
}

template <typename T>
void bin_rows(const Stream<T> (&streams)[kStreams], int64_t length, int bins, uint16_t* histograms) {
#if defined(__AVX512VPOPCNTDQ__)
    if (bins <= kMaskBins) return bin_rows_by_masks(streams, length, bins, histograms);
#endif
    alignas(64) uint16_t place[kStreams][kChunk];
    for (int r = 0; r < kStreams; ++r) {
        if (streams[r].row) continue;
        for (int64_t c = 0; c < kChunk; ++c) place[r][c] = static_cast<uint16_t>(bins * kLanes<uint16_t> + r);
    }
    for (int64_t c = 0; c < length; c += kChunk) {
        const int64_t some = length - c < kChunk ? length - c : kChunk;
        for (int r = 0; r < kStreams; ++r) {
            if (streams[r].row) find_bins(streams[r], streams[r].row + c, some, bins, r, place[r]);
        }
        // Row after row in turn: a count is read again at the earliest eight additions after it was
        // written, also where half of a row lies in one bin. Meanwhile the next rows come from memory, a
        // line at a time: looking for their ranges need not wait, nor does an addition behind a queue of
        // fetches.
        constexpr int64_t kValues = kLine / static_cast<int64_t>(sizeof(T)), kPause = kValues / kStreams;
        for (int64_t k = 0; k < some; k += kPause) {
            const Stream<T>& s = streams[k / kPause % kStreams];
            if (s.next) __builtin_prefetch(s.next + c + k / kValues * kValues, 0, 2);
            for (int64_t j = k; j < k + kPause && j < some; ++j) {
#pragma GCC unroll 8
                for (int r = 0; r < kStreams; ++r) ++histograms[place[r][j]];
            }
        }
    }
}

template <typename Count>
void fold(const Count* finer, int ratio, int bins, const Count* mask, Count* to) {
    using Line = typename LineOf<Count>::type;
    constexpr int L = kLanes<Count>;
    const Line keep = load_bits<Line>(mask);
    for (int b = 0; b < bins; ++b) {
        Line sum = load_bits<Line>(finer + b * ratio * L);
        for (int k = 1; k < ratio; ++k) sum += load_bits<Line>(finer + (b * ratio + k) * L);
        const Line line = (load_bits<Line>(to + b * L) & keep) | (sum & ~keep);
        std::memcpy(to + b * L, &line, kLine);
    }
}

namespace {

// Batcher's merge exchange, for any number of lines (Knuth, The Art of Computer Programming 3, 5.2.2,
// algorithm M): which lines are compared does not depend on what they hold, so all lanes go together.
template <typename Count>
RESQUE_INLINE void sort_lines(Count* lines, int count) {
    using Line = typename LineOf<Count>::type;
    constexpr int L = kLanes<Count>;
    int top = 1;
    while (2 * top < count) top *= 2;
    for (int p = top; p > 0; p /= 2) {
        for (int q = top, r = 0, d = p;; q /= 2, r = p) {
            for (int start = r; start + d < count; start += 2 * p) {  // those i whose bit p is that of r
                const int end = start + p < count - d ? start + p : count - d;
                for (int i = start; i < end; ++i) {
                    const Line a = load_bits<Line>(lines + i * L), b = load_bits<Line>(lines + (i + d) * L);
                    const Line low = lesser(a, b), high = greater(a, b);
                    std::memcpy(lines + i * L, &low, kLine);
                    std::memcpy(lines + (i + d) * L, &high, kLine);
                }
            }
            if (q == p) break;
            d = q - p;
        }
    }
}

}  // namespace

template <typename Count>
void sorted_apart(const Count* a, const Count* b, int bins, Count* scratch, int64_t* apart) {
    constexpr int L = kLanes<Count>;
    Count* const p = scratch;
    Count* const q = scratch + bins * L;
    std::memcpy(p, a, bins * kLine);
    std::memcpy(q, b, bins * kLine);
    sort_lines(p, bins);
    sort_lines(q, bins);
    uint32_t sum[L] = {};  // at most 2 * m < 2^32
    for (int i = 0; i < bins; ++i) {
        for (int l = 0; l < L; ++l) {
            const uint32_t x = p[i * L + l], y = q[i * L + l];
            sum[l] += x > y ? x - y : y - x;
        }
    }
    for (int l = 0; l < L; ++l) apart[l] = sum[l];
}

template <typename Count>
void cumulative_apart(const Count* a, const Count* b, int bins, int64_t* apart) {
    constexpr int L = kLanes<Count>;
    int32_t gap[L] = {};
    for (int l = 0; l < L; ++l) apart[l] = 0;
    for (int i = 0; i < bins; ++i) {
        for (int l = 0; l < L; ++l) {
            gap[l] += static_cast<int32_t>(a[i * L + l]) - static_cast<int32_t>(b[i * L + l]);
            apart[l] += gap[l] < 0 ? -gap[l] : gap[l];
        }
    }
}

template <typename Count>
void compare_lanes(const Count* a, const Count* b, int bins, Count* most, Count* differ) {
    using Line = typename LineOf<Count>::type;
    constexpr int L = kLanes<Count>;
    Line greatest = {}, apart = {};
    for (int i = 0; i < bins; ++i) {
        const Line x = load_bits<Line>(a + i * L), y = load_bits<Line>(b + i * L);
        greatest = greater(greatest, greater(x, y));
        apart |= x ^ y;
    }
    std::memcpy(most, &greatest, kLine);
    std::memcpy(differ, &apart, kLine);
}

namespace {

template <typename Count, typename Terms, typename Entropy>
RESQUE_INLINE void sum_bins(const Count* a, const Count* b, int bins, const Terms& terms_of,
                            const Entropy& xlogx_of, CountSums* sums) {
    constexpr int L = kLanes<Count>;
    Double4 products[2] = {};
    double entropy[2] = {};
    const auto add = [&](int i, int k) RESQUE_INLINE_LAMBDA {
        const uint32_t x = a[i * L], y = b[i * L];
        const CountTerms &from = terms_of(x), &to = terms_of(y);
        products[k] += load_bits<Double4>(from.as_old) * load_bits<Double4>(to.as_new);
        entropy[k] += xlogx_of(y) - xlogx_of(x + y);
    };
    int i = 0;
    for (; i + 2 <= bins; i += 2) add(i, 0), add(i + 1, 1);
    if (i < bins) add(i, 0);
    const Double4 sum = products[0] + products[1];
    sums->roots = sum[0];
    sums->kl = sum[1] - sum[2];
    sums->entropy = sum[3] + (entropy[0] + entropy[1]);
}

}  // namespace

template <typename Count>
void count_sums(const Count* a, const Count* b, int bins, const CountTables& tables, CountSums* sums) {
    const CountTerms* const terms = tables.terms;
    const double* const entropies = tables.xlogx;
    sum_bins(
        a, b, bins, [=](uint32_t c) RESQUE_INLINE_LAMBDA -> const CountTerms& { return terms[c]; },
        [=](uint32_t c) RESQUE_INLINE_LAMBDA { return entropies[c]; }, sums);
}

template <typename Count>
void count_sums_beyond(const Count* a, const Count* b, int bins, const CountTables& tables,
                       CountSums* sums) {
    const auto limit = static_cast<uint32_t>(tables.limit);
    sum_bins(
        a, b, bins, [&](uint32_t c) { return c <= limit ? tables.terms[c] : count_terms(c); },
        [&](uint32_t c) { return c <= 2 * limit ? tables.xlogx[c] : xlogx(c); }, sums);
}

#define RESQUE_INSTANTIATE(T)                                               \
    template bool row_range<T>(const T*, int64_t, Binned<T>*, Binned<T>*);  \
    template void widen_row<T>(const T*, int64_t, Binned<T>*);              \
    template void bin_rows<T>(const Stream<T>(&)[kStreams], int64_t, int, uint16_t*);
RESQUE_INSTANTIATE(float)
RESQUE_INSTANTIATE(double)
RESQUE_INSTANTIATE(Half)
RESQUE_INSTANTIATE(BFloat)
#undef RESQUE_INSTANTIATE

#define RESQUE_INSTANTIATE(Count)                                                                     \
    template void fold<Count>(const Count*, int, int, const Count*, Count*);                          \
    template void sorted_apart<Count>(const Count*, const Count*, int, Count*, int64_t*);             \
    template void cumulative_apart<Count>(const Count*, const Count*, int, int64_t*);                 \
    template void compare_lanes<Count>(const Count*, const Count*, int, Count*, Count*);              \
    template void count_sums<Count>(const Count*, const Count*, int, const CountTables&, CountSums*); \
    template void count_sums_beyond<Count>(const Count*, const Count*, int, const CountTables&,       \
                                           CountSums*);
RESQUE_INSTANTIATE(uint16_t)
RESQUE_INSTANTIATE(uint32_t)

}  // namespace resque::cpu::RESQUE_ISA
