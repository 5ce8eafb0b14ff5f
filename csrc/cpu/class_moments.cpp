// class_moments on the CPU.
//
// The rows, grouped by class_order, are cut into windows of a fixed number of rows: one window is one
// task. Inside a window each run of rows of one group is summed eight rows at a time, column by
// column, in float64; a run that is its whole group writes the result, a run that a window's edge cuts
// writes a slot of the workspace, and the slots of a group are added in their order, compensated. So
// a result depends on the sizes alone, never on the number of threads, and its error is bounded by
// that of one window: 1,024 additions, 1.1e-13 of the sum of absolute values.
//
// Speed: two cores read about 4 bytes a cycle each here, a row of float32 takes 3 vector operations
// per 32 bytes, so arithmetic is hidden; what counts is that rows gathered from all over memory are
// asked for early: while eight rows are summed, the next eight are prefetched.
#include <cmath>

#include "cpu/common.h"
#include "dispatch.h"
#include "validate.h"

namespace resque::cpu {
namespace {

constexpr int64_t kRowsAtOnce = 8;
constexpr int64_t kTile = 1024;  // columns at a time: 16 KB of sums and squares stay in the L1

// Rows of a window. Slots cost 2 windows' rows / 32 bytes of traffic, below 1% at 1,024 rows of
// float32; small batches get smaller windows, so that there are some for every thread.
int64_t window_rows(int64_t n) { return std::clamp<int64_t>(n / 64 / 8 * 8, 32, 1024); }

// Adds R rows of T to the sums of `width` columns (sets them, where First) and prefetches R others.
template <int R, bool First, bool Squares, typename T>
RESQUE_INLINE void add_rows(const T* const* row, const T* const* ahead, int64_t width, double* sum,
                            double* sumsq) {
    constexpr int64_t kLine = 64 / sizeof(T);
    const auto add8 = [&](int64_t c) RESQUE_INLINE_LAMBDA {
        Double8 s{}, q{};
        if constexpr (!First) {
            s = load8(sum + c);
            if constexpr (Squares) q = load8(sumsq + c);
        }
        for (int r = 0; r < R; ++r) {
            const Double8 x = load8(row[r] + c);
            s += x;
            if constexpr (Squares) q += x * x;
        }
        std::memcpy(sum + c, &s, sizeof s);
        if constexpr (Squares) std::memcpy(sumsq + c, &q, sizeof q);
    };
    int64_t c = 0;
    for (; c + kLine <= width; c += kLine) {
        if (ahead) {
            // One line of each row in turn: measured faster than row after row.
            for (int r = 0; r < R; ++r) __builtin_prefetch(ahead[r] + c, 0, 2);
        }
        for (int64_t k = 0; k < kLine; k += 8) add8(c + k);
    }
    for (; c + 8 <= width; c += 8) add8(c);
    for (; c < width; ++c) {
        double s = First ? 0.0 : sum[c], q = First || !Squares ? 0.0 : sumsq[c];
        for (int r = 0; r < R; ++r) {
            const double x = load1(row[r] + c);
            s += x;
            if constexpr (Squares) q += x * x;
        }
        sum[c] = s;
        if constexpr (Squares) sumsq[c] = q;
    }
}

template <int R, bool Squares, typename T>
RESQUE_INLINE void add_rows(bool first, const T* const* row, const T* const* ahead, int64_t width,
                            double* sum, double* sumsq) {
    if (first) {
        add_rows<R, true, Squares>(row, ahead, width, sum, sumsq);
    } else {
        add_rows<R, false, Squares>(row, ahead, width, sum, sumsq);
    }
}

// Adds `count` rows, at(0) .. at(count - 1), to sum and sumsq [width]; zero rows give zeros. at(i) may
// be asked for i up to count - 1 + lookahead, to prefetch.
template <bool Squares, typename At>
RESQUE_INLINE void sum_rows(const At& at, int64_t count, int64_t lookahead, int64_t width,
                            double* sum, double* sumsq) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(at(0))>>;
    if (count == 0) {
        std::fill(sum, sum + width, 0.0);
        if constexpr (Squares) std::fill(sumsq, sumsq + width, 0.0);
        return;
    }
    const T *row[kRowsAtOnce], *ahead[kRowsAtOnce];
    int64_t i = 0;
    for (; i + kRowsAtOnce <= count; i += kRowsAtOnce) {
        const int64_t last = count - 1 + lookahead;
        for (int r = 0; r < kRowsAtOnce; ++r) {
            row[r] = at(i + r);
            ahead[r] = at(std::min(i + kRowsAtOnce + r, last));
        }
        add_rows<kRowsAtOnce, Squares>(i == 0, row, ahead, width, sum, sumsq);
    }
    const T* const* none = nullptr;
    for (; i + 2 <= count; i += 2) {
        row[0] = at(i), row[1] = at(i + 1);
        add_rows<2, Squares>(i == 0, row, none, width, sum, sumsq);
    }
    if (i < count) {
        row[0] = at(i);
        add_rows<1, Squares>(i == 0, row, none, width, sum, sumsq);
    }
}

// The mean over the positions of one row, in float64: mean [channels].
template <typename T>
RESQUE_INLINE void pool_row(const Features& x, const T* row, double* mean) {
    if (x.stride_c == 1) {  // channels side by side: positions are rows to add
        const auto at = [&](int64_t p) RESQUE_INLINE_LAMBDA { return row + p * x.stride_p; };
        sum_rows<false>(at, x.positions, 0, x.channels, mean, nullptr);
        for (int64_t c = 0; c < x.channels; ++c) mean[c] /= static_cast<double>(x.positions);
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
        mean[c] = sum / static_cast<double>(x.positions);
    }
}

// What one window finds of non-finite values, gathered over the windows afterwards.
struct Faults {
    int64_t count, from_end, rows;
};

// A window's own part of the workspace, so that nothing is allocated and no two windows share a place.
struct Space {
    int64_t slot;    // doubles: one sum, and one sum of squares where wanted, [channels] each
    int64_t pooled;  // doubles: kRowsAtOnce rows of means, where there is something to pool
    int64_t kept;    // int32: rows left after the non-finite ones are taken out

    Space(const Features& x, bool squares)
        : slot(x.channels * (squares ? 2 : 1)),
          pooled(x.positions > 1 ? kRowsAtOnce * x.channels : 0),
          kept(window_rows(x.n)) {}

    int64_t bytes() const {
        return static_cast<int64_t>(sizeof(Faults) + sizeof(double) * (2 * slot + pooled) +
                                    sizeof(int32_t) * kept);
    }
};

template <typename T, bool Squares>
struct Window {
    const ClassMoments& a;
    Space space;
    Faults* faults;
    double* slots;
    double* pooled;
    int32_t* kept;

    Window(const ClassMoments& args, int64_t index) : a(args), space(args.x, Squares) {
        char* mine = static_cast<char*>(a.workspace) + index * space.bytes();
        faults = reinterpret_cast<Faults*>(mine);
        slots = reinterpret_cast<double*>(faults + 1);
        pooled = slots + 2 * space.slot;
        kept = reinterpret_cast<int32_t*>(pooled + space.pooled);
    }

    RESQUE_INLINE const T* row(int64_t i) const {
        return static_cast<const T*>(a.x.data) + i * a.x.stride_n;
    }

    // Sums the listed rows; `lookahead` more entries of the list may be prefetched.
    RESQUE_INLINE void sum(const int32_t* rows, int64_t count, int64_t lookahead, double* sums,
                           double* sumsq) {
        const int64_t channels = a.x.channels;
        if (a.x.positions == 1) {
            for (int64_t c = 0; c < channels; c += kTile) {
                const auto at = [&](int64_t i) RESQUE_INLINE_LAMBDA { return row(rows[i]) + c; };
                sum_rows<Squares>(at, count, lookahead, std::min(kTile, channels - c), sums + c,
                                  Squares ? sumsq + c : nullptr);
            }
            return;
        }
        if (count == 0) sum_rows<Squares>([&](int64_t) { return pooled; }, 0, 0, channels, sums, sumsq);
        for (int64_t i = 0; i < count; i += kRowsAtOnce) {
            const int64_t some = std::min(kRowsAtOnce, count - i);
            const double* mean[kRowsAtOnce];
            for (int64_t r = 0; r < some; ++r) {
                pool_row(a.x, row(rows[i + r]), pooled + r * channels);
                mean[r] = pooled + r * channels;
            }
            const double* const* none = nullptr;
            if (some == kRowsAtOnce) {
                add_rows<kRowsAtOnce, Squares>(i == 0, mean, none, channels, sums, sumsq);
            } else {
                for (int64_t r = 0; r < some; ++r) {
                    add_rows<1, Squares>(i + r == 0, mean + r, none, channels, sums, sumsq);
                }
            }
        }
    }

    RESQUE_INLINE bool finite(const double* values) const {
        double zero = 0;  // 0 * x is NaN for infinity and NaN, and NaN stays
        for (int64_t c = 0; c < a.x.channels; ++c) zero += 0 * values[c];
        return zero == 0;
    }

    // Counts what is not finite in the listed rows and keeps the others. Only ever called for a run
    // whose sum is not finite.
    RESQUE_INLINE int64_t keep_finite(const int32_t* rows, int64_t count) {
        int64_t keep = 0;
        for (int64_t i = 0; i < count; ++i) {
            if (a.x.positions > 1) pool_row(a.x, row(rows[i]), pooled);
            int64_t bad = 0;
            for (int64_t c = 0; c < a.x.channels; ++c) {
                const double v = a.x.positions > 1 ? pooled[c] : load1(row(rows[i]) + c);
                if (std::isfinite(v)) continue;
                const int64_t flat = rows[i] * a.x.channels + c;
                faults->from_end = std::max(faults->from_end, a.x.n * a.x.channels - flat);
                ++bad;
            }
            faults->count += bad;
            faults->rows += bad > 0;
            if (bad == 0) kept[keep++] = rows[i];
        }
        return keep;
    }

    // The window's rows are order[begin .. end).
    RESQUE_INLINE void operator()(int64_t begin, int64_t end) {
        const int64_t channels = a.x.channels;
        *faults = {};
        const int64_t* group = std::upper_bound(a.offsets, a.offsets + a.groups + 1, begin) - 1;
        for (int64_t i = begin; i < end;) {
            while (group[1] <= i) ++group;
            const int64_t g = group - a.offsets, stop = std::min(group[1], end);
            const bool whole = group[0] >= begin && group[1] <= end;
            // slot 0: a run that began in an earlier window; slot 1: one that begins here and goes on
            double* slot = slots + (group[0] < begin ? 0 : space.slot);
            double* sums = whole ? a.sums + g * channels : slot;
            double* sumsq = !Squares ? nullptr : whole ? a.sumsq + g * channels : slot + channels;
            sum(a.order + i, stop - i, end - stop, sums, sumsq);
            if (!finite(sums)) {
                const int64_t keep = keep_finite(a.order + i, stop - i);
                if (a.skip_nonfinite && keep < stop - i) {
                    sum(kept, keep, 0, sums, sumsq);
                    __atomic_fetch_sub(&a.counts[g], stop - i - keep, __ATOMIC_RELAXED);
                }
            }
            i = stop;
        }
    }
};

// Adds the slots of group g, which begins in window `first` and ends in window `last`, in their order:
// each column with Neumaier's compensation, so that the number of windows costs no accuracy.
template <typename T, bool Squares>
void add_slots(const ClassMoments& a, int64_t g, int64_t first, int64_t last) {
    const int64_t channels = a.x.channels, size = Space(a.x, Squares).slot;
    std::vector<const double*> slots;
    for (int64_t w = first; w <= last; ++w) {
        slots.push_back(Window<T, Squares>(a, w).slots + (w == first ? size : 0));
    }
    for (int64_t c = 0; c < size; ++c) {
        double sum = 0, lost = 0;
        for (const double* slot : slots) {
            const double x = slot[c], next = sum + x;
            lost += std::abs(sum) >= std::abs(x) ? (sum - next) + x : (x - next) + sum;
            sum = next;
        }
        // Where the sum left the finite numbers `lost` is NaN, and the sum alone is the answer.
        double* out = c < channels ? a.sums + g * channels + c : a.sumsq + g * channels + c - channels;
        *out = std::isfinite(sum) ? sum + lost : sum;
    }
}

template <typename T, bool Squares>
void run(const ClassMoments& a, int threads) {
    const int64_t channels = a.x.channels, rows = window_rows(a.x.n);
    const int64_t total = a.offsets[a.groups], windows = (total + rows - 1) / rows;
    const int64_t bytes = total * channels * a.x.positions * static_cast<int64_t>(sizeof(T));

    parallel_for(windows, threads, bytes, [&](int64_t w) {
        const auto kernel = [](auto window, int64_t begin, int64_t end)
                                RESQUE_INLINE_LAMBDA { window(begin, end); };
        Window<T, Squares> window(a, w);
        call_for_isa(kernel, window, w * rows, std::min((w + 1) * rows, total));
    });
    constexpr int64_t kGroups = 256;  // a task: most groups have nothing left to do
    parallel_for((a.groups + kGroups - 1) / kGroups, threads, bytes, [&](int64_t task) {
        for (int64_t g = task * kGroups; g < std::min((task + 1) * kGroups, a.groups); ++g) {
            const int64_t begin = a.offsets[g], end = a.offsets[g + 1];
            if (begin == end) {
                std::fill_n(a.sums + g * channels, channels, 0.0);
                if (Squares) std::fill_n(a.sumsq + g * channels, channels, 0.0);
            } else if (begin / rows != (end - 1) / rows) {
                add_slots<T, Squares>(a, g, begin / rows, (end - 1) / rows);
            }
        }
    });
    for (int64_t w = 0; w < windows; ++w) {
        const Faults& found = *Window<T, Squares>(a, w).faults;
        a.status[kNonfiniteCount] += found.count;
        a.status[kNonfiniteFromEnd] = std::max(a.status[kNonfiniteFromEnd], found.from_end);
        a.status[kNonfiniteRows] += found.rows;
    }
}

}  // namespace

int64_t class_moments_workspace(const Features& x, bool squares) {
    const int64_t rows = window_rows(x.n), windows = (x.n + rows - 1) / rows;
    return windows * Space(x, squares).bytes();
}

void class_moments(const ClassMoments& a, int threads) {
    validate(a);
    for (int64_t g = 0; g < a.groups; ++g) a.counts[g] = a.offsets[g + 1] - a.offsets[g];
    dispatch<Half, BFloat>(a.x.dtype, [&](auto type) {
        dispatch_bool(a.squares, [&](auto squares) {
            run<typename decltype(type)::type, decltype(squares)::value>(a, threads);
        });
    });
}

}  // namespace resque::cpu
