// class_moments on the CPU.
//
// The work is cut into windows, a function of the sizes alone; a window is one task, a run is the rows
// of one group in one window. Runs are summed 8 to 32 rows at a time in float64, in a slot of the
// workspace. A run that is its whole group is the result; else the slots of a group are added in their
// order, compensated. So a result never depends on the number of threads, and its error is bounded by
// that of one run: 16,384 rows, 8 at a time, (2,048 + 8) * 2^-53 = 2.3e-13 of the sum of absolute values.
//
// Two ways through memory, for the same sums:
//   Streaming, few groups, or some and narrow rows: a window is a range of rows. It goes tile by tile,
//   1 MB each, group by group inside a tile, so that what is read next is never far away. Slots: one a
//   window and group.
//   Gathering, many groups: a window is a range of `order`, the rows grouped. Slots: two a window, for
//   the runs that its ends cut, and one to sum the others in, so that their results are written once.
// Either way the rows (32 of 2 KB) are summed 64 columns at a time, whose sums stay in registers, while
// memory is asked evenly for the rows to come, a piece of 64 columns for each piece that is summed: for
// those 32 rows ahead and for those 48 ahead; and for the first line of those 64 ahead, which has the
// page's address at hand when the rest is asked for. All are asked into the second cache: into the first
// the sums take a quarter more time. Those first lines are asked for one after another, so that several
// addresses are looked up at once: spread over the sums they cost a fifth more time.
//
// Measured on two cores (AMD Genoa) at 200,000 rows of 512 float32 and 1,000 groups, as a share of the
// speed of adding everything up: 0.68 to 0.80 where memory gives the sum 30 GB/s, 0.54 to 0.63 in processes
// where it gives 45. The loop takes a third of the time on rows in the cache; alone with memory it reaches
// 0.85 and 0.66, on rows in their own order 0.90 and 0.81. The rest is the order (4%), the results written
// (4%), the cut runs and the wait for the last window (2%). Pages of 2 MB under the features change
// nothing, nor do 2 to 32 ranges of rows one after another. On an Intel Xeon (Emerald Rapids), where the
// sum runs at 19 GB/s, it is 0.68 to 0.75, without the first lines 0.52, and no better at other
// distances ahead.
//
// A row of float32 costs 3 vector operations per 32 bytes, 1.4 ns a line of 64 bytes, while a core reads
// one from memory in some 4 ns.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/class_moments_rows.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"
#include "dispatch.h"
#include "validate.h"

namespace resque::cpu {
namespace {

// NaN and infinity have every exponent bit set.
bool is_finite(double x) { return std::isfinite(x); }
bool is_finite(Half x) { return (x.bits & 0x7c00) != 0x7c00; }
bool is_finite(BFloat x) { return (x.bits & 0x7f80) != 0x7f80; }

constexpr int kRows = 32;        // summed at once, at most
constexpr int64_t kStreamWindow = 16384;  // rows at most
constexpr int64_t kStreamGroups = 128;  // at most, where rows are narrow; 32 of any width
constexpr int64_t kLeastTile = 32;  // rows
constexpr int64_t kUnasked = int64_t{1} << 22;  // values that are added before asking whether to stop

// How the work is cut: fixed by the sizes, so that the result is.
struct Plan {
    bool streaming;
    int rows;         // summed at once
    int64_t window;   // rows
    int64_t windows;
    int64_t tile;     // rows, streaming
    int64_t slots;    // of a window
    int64_t slot;     // doubles: one sum, and one sum of squares where wanted, [channels] each
    int64_t pooled;   // doubles of scratch for means, where there is something to average

    Plan(const Features& x, int64_t groups, bool squares) {
        const int64_t size = x.dtype == DType::float64 ? 8 : x.dtype == DType::float32 ? 4 : 2;
        const int64_t bytes = std::max<int64_t>(x.channels * size, 1);  // of a row
        rows = static_cast<int>(std::clamp<int64_t>((int64_t{1} << 16) / bytes, 8, kRows));
        tile = std::clamp<int64_t>((int64_t{1} << 20) / bytes, kLeastTile, kStreamWindow);
        // Rows of few lines are slow to gather; but runs have to be long enough for their sums, which
        // leave the registers at the end of each.
        const bool few = groups <= 32 && 4 * groups <= tile;
        const bool narrow = groups <= kStreamGroups && 32 * groups <= tile;
        streaming = x.positions == 1 && (few || narrow) && x.n >= 32768;
        // Gathering slots cost 64 / (window * size) of the bytes: under 1% at 2,048 rows. Smaller
        // batches get smaller windows, so that there are some for every thread.
        window = streaming ? std::clamp<int64_t>(x.n / 32 / 8 * 8, 1024, kStreamWindow)
                           : std::clamp<int64_t>(x.n / 64 / 8 * 8, 32, 4096);
        windows = (x.n + window - 1) / window;
        slots = streaming ? groups : 3;
        slot = x.channels * (squares ? 2 : 1);
        pooled = x.positions > 1 ? rows * x.channels : 0;
    }
};

// What a window finds of non-finite values.
struct Faults {
    int64_t count, from_end, rows;
};

// The rows to come, in the order in which they will be wanted; past the end, the last one again.
struct Ahead {
    const int32_t* list;
    int64_t at, end;

    int64_t row(int64_t later) const { return list[std::min(at + later, end - 1)]; }
};

template <typename T, bool Squares>
class Worker {
   public:
    Worker(const ClassMoments& args, const Plan& how, int64_t window)
        : a_(args), plan_(how), window_(window) {
        char* space = static_cast<char*>(a_.workspace) + window * bytes(how);
        faults_ = reinterpret_cast<Faults*>(space);
        slots_ = reinterpret_cast<double*>(faults_ + 1);
        pooled_ = slots_ + how.slots * how.slot;
        rows_ = reinterpret_cast<int32_t*>(pooled_ + how.pooled);
    }

    // A window's own part of the workspace: nothing is allocated, and no two windows share a place.
    static int64_t bytes(const Plan& how) {
        const int64_t doubles = how.slots * how.slot + how.pooled;
        return static_cast<int64_t>(sizeof(Faults)) + doubles * 8 + (how.window * 4 + 7) / 8 * 8;
    }

    const Faults& faults() const { return *faults_; }
    const double* slot(int64_t index) const { return slots_ + index * plan_.slot; }

    void gather() {
        *faults_ = {};
        const int64_t begin = window_ * plan_.window;
        const int64_t end = std::min(begin + plan_.window, a_.offsets[a_.groups]);
        const int64_t* group = std::upper_bound(a_.offsets, a_.offsets + a_.groups + 1, begin) - 1;
        Ahead ahead{a_.order, begin, a_.offsets[a_.groups]};
        for (int64_t i = begin; i < end;) {
            while (group[1] <= i) ++group;
            const int64_t g = group - a_.offsets, stop = std::min(group[1], end);
            const bool whole = group[0] >= begin && group[1] <= end;
            const bool at_once = whole && stop - i <= plan_.rows;  // written once anyway
            double* slot = slots_ + (whole ? 2 : group[0] >= begin) * plan_.slot;
            double* sums = at_once ? a_.sums + g * a_.x.channels : slot;
            double* sumsq = !Squares ? nullptr
                            : at_once ? a_.sumsq + g * a_.x.channels
                                      : slot + a_.x.channels;
            add(a_.order + i, stop - i, ahead, true, sums, sumsq);
            mend(g, a_.order + i, stop - i, sums, sumsq);
            if (whole && !at_once) {
                std::copy_n(sums, a_.x.channels, a_.sums + g * a_.x.channels);
                if (Squares) std::copy_n(sumsq, a_.x.channels, a_.sumsq + g * a_.x.channels);
            }
            i = stop;
        }
    }

    void stream() {
        *faults_ = {};
        const int64_t begin = window_ * plan_.window, end = std::min(begin + plan_.window, a_.x.n);
        int64_t next[kStreamGroups];  // in `order`: the first row of each group not yet listed
        for (int64_t g = 0; g < a_.groups; ++g) {
            next[g] = find(g, begin);
            clear(sums(g), sumsq(g));
        }
        // The window's rows tile by tile, group by group, and how many each of these runs has.
        int16_t runs[kStreamWindow / 4 + kStreamGroups];  // a tile has four times as many rows as groups
        int64_t listed = 0, run = 0;
        for (int64_t tile = begin; tile < end; tile += plan_.tile) {
            const int64_t stop = std::min(tile + plan_.tile, end);
            for (int64_t g = 0; g < a_.groups; ++g) {
                const int64_t before = listed;
                while (next[g] < a_.offsets[g + 1] && a_.order[next[g]] < stop) {
                    rows_[listed++] = a_.order[next[g]++];
                }
                runs[run++] = static_cast<int16_t>(listed - before);
            }
        }
        Ahead ahead{rows_, 0, listed};
        int64_t at = 0;
        for (int64_t r = 0; r < run; ++r) {
            const int64_t g = r % a_.groups;
            add(rows_ + at, runs[r], ahead, false, sums(g), sumsq(g));
            at += runs[r];
        }
        for (int64_t g = 0; g < a_.groups; ++g) {
            const int64_t first = find(g, begin);
            mend(g, a_.order + first, next[g] - first, sums(g), sumsq(g));
        }
    }

   private:
    double* sums(int64_t g) const { return slots_ + g * plan_.slot; }
    double* sumsq(int64_t g) const { return Squares ? sums(g) + a_.x.channels : nullptr; }
    const T* row(int64_t i) const { return static_cast<const T*>(a_.x.data) + i * a_.x.stride_n; }

    // Where group g has its first row at or behind `begin`.
    int64_t find(int64_t g, int64_t begin) const {
        return std::lower_bound(a_.order + a_.offsets[g], a_.order + a_.offsets[g + 1], begin) - a_.order;
    }

    void clear(double* sums, double* sumsq) const {
        std::fill_n(sums, a_.x.channels, 0.0);
        if (Squares) std::fill_n(sumsq, a_.x.channels, 0.0);
    }

    // Adds rows to the sums, or, `fresh`, makes the sums those of the rows.
    void add(const int32_t* rows, int64_t count, Ahead& ahead, bool fresh, double* sums,
             double* sumsq) {
        const int soon = plan_.rows, later = soon + soon / 2, page = 2 * soon;
        const bool one_line = a_.x.channels * static_cast<int64_t>(sizeof(T)) <= 64;  // asked for as such
        for (int64_t i = 0; i < count; i += plan_.rows) {
            if ((unasked_ += plan_.rows * a_.x.channels * a_.x.positions) >= kUnasked) {
                if (stopped()) return;
                unasked_ = 0;
            }
            const int some = static_cast<int>(std::min<int64_t>(plan_.rows, count - i));
            if (a_.x.positions > 1) {
                const double* mean[kRows];
                for (int r = 0; r < some; ++r) {
                    pool_(a_.x, row(rows[i + r]), pooled_ + r * a_.x.channels);
                    mean[r] = pooled_ + r * a_.x.channels;
                }
                add_pooled_(mean, some, nullptr, nullptr, a_.x.channels, fresh && i == 0, sums, sumsq);
                continue;
            }
            const T *at[kRows], *next[kRows], *after[kRows];
            for (int r = 0; r < some; ++r) at[r] = row(rows[i + r]);
            for (int r = 0; r < (one_line ? 0 : some); ++r) {
                next[r] = row(ahead.row(soon + r));
                after[r] = row(ahead.row(later + r));
            }
            for (int r = 0; r < some; ++r) __builtin_prefetch(row(ahead.row(page + r)), 0, 2);
            ahead.at += some;
            add_rows_(at, some, one_line ? nullptr : next, one_line ? nullptr : after, a_.x.channels,
                      fresh && i == 0, sums, sumsq);
        }
    }

    // A sum is finite exactly when all it added was: float64 has room for any number of narrower
    // floats. Where it is not, this looks for the values, and sums the run again without their rows
    // if those are to be skipped.
    void mend(int64_t g, const int32_t* rows, int64_t count, double* sums, double* sumsq) {
        if (all_finite_(sums, a_.x.channels)) return;
        const int64_t keep = keep_finite(rows, count);
        if (!a_.skip_nonfinite || keep == count) return;
        clear(sums, sumsq);
        Ahead ahead{rows_, 0, std::max<int64_t>(keep, 1)};
        add(rows_, keep, ahead, false, sums, sumsq);
        __atomic_fetch_sub(&a_.counts[g], count - keep, __ATOMIC_RELAXED);
    }

    int64_t keep_finite(const int32_t* rows, int64_t count) {
        int64_t keep = 0;
        for (int64_t i = 0; i < count; ++i) {
            const T* values = row(rows[i]);
            if (a_.x.positions > 1) pool_(a_.x, values, pooled_);
            int64_t bad = 0;
            for (int64_t c = 0; c < a_.x.channels; ++c) {
                if (a_.x.positions > 1 ? is_finite(pooled_[c]) : is_finite(values[c])) continue;
                const int64_t flat = rows[i] * a_.x.channels + c;
                faults_->from_end = std::max(faults_->from_end, a_.x.n * a_.x.channels - flat);
                ++bad;
            }
            faults_->count += bad;
            faults_->rows += bad > 0;
            if (bad == 0) rows_[keep++] = rows[i];
        }
        return keep;
    }

    const ClassMoments& a_;
    const Plan& plan_;
    int64_t window_;
    Faults* faults_;
    double* slots_;
    double* pooled_;
    int64_t unasked_ = 0;
    int32_t* rows_;  // [window] scratch: rows in another order, or those that are kept
    void (*add_rows_)(const T* const*, int, const T* const*, const T* const*, int64_t, bool, double*,
                      double*) = RESQUE_PICK(add_rows<T, Squares>);
    void (*add_pooled_)(const double* const*, int, const double* const*, const double* const*, int64_t,
                        bool, double*, double*) = RESQUE_PICK(add_rows<double, Squares>);
    void (*pool_)(const Features&, const T*, double*) = RESQUE_PICK(pool_row<T>);
    bool (*all_finite_)(const double*, int64_t) = RESQUE_PICK(all_finite);
};

// Adds slots in their order. Of two, the compensated sum is the rounded one.
void merge_slots(std::vector<const double*>& slots, int64_t channels, double* out) {
    if (slots.size() == 2) {
        std::transform(slots[0], slots[0] + channels, slots[1], out,
                       [](double x, double y) { return x + y; });
    } else {
        RESQUE_PICK(add_slots)(slots.data(), static_cast<int64_t>(slots.size()), channels, out);
    }
}

template <typename T, bool Squares>
void run(const ClassMoments& a, int threads) {
    using Work = Worker<T, Squares>;
    const Plan plan(a.x, a.groups, Squares);
    const int64_t channels = a.x.channels, total = a.offsets[a.groups];
    const int64_t bytes = total * channels * a.x.positions * static_cast<int64_t>(sizeof(T));
    // Gathering reads `order` up to the rows that have a group; the windows behind have nothing to do.
    const int64_t windows = plan.streaming ? plan.windows : (total + plan.window - 1) / plan.window;

    if (!a.zeroed) {  // else most of a large page would be zeroed for nothing
        prefer_huge_pages(a.sums, a.groups * channels * 8);
        if (Squares) prefer_huge_pages(a.sumsq, a.groups * channels * 8);
    }
    parallel_apart(windows, threads, bytes, [&](int64_t w) {
        Work work(a, plan, w);
        plan.streaming ? work.stream() : work.gather();
    });
    constexpr int64_t kGroups = 256;  // a task: most groups have nothing left to do
    parallel_for((a.groups + kGroups - 1) / kGroups, threads, bytes, [&](int64_t task) {
        std::vector<const double*> slots;
        for (int64_t g = task * kGroups; g < std::min((task + 1) * kGroups, a.groups); ++g) {
            const int64_t begin = a.offsets[g], end = a.offsets[g + 1];
            slots.clear();
            if (plan.streaming) {
                for (int64_t w = 0; w < windows; ++w) slots.push_back(Work(a, plan, w).slot(g));
            } else if (begin == end) {
                if (a.zeroed) continue;
                std::fill_n(a.sums + g * channels, channels, 0.0);
                if (Squares) std::fill_n(a.sumsq + g * channels, channels, 0.0);
                continue;
            } else {
                const int64_t first = begin / plan.window, last = (end - 1) / plan.window;
                if (first == last) continue;
                for (int64_t w = first; w <= last; ++w) slots.push_back(Work(a, plan, w).slot(w == first));
            }
            merge_slots(slots, channels, a.sums + g * channels);
            if (!Squares) continue;
            for (const double*& slot : slots) slot += channels;
            merge_slots(slots, channels, a.sumsq + g * channels);
        }
    });
    for (int64_t w = 0; w < windows; ++w) {
        const Work work(a, plan, w);
        a.status[kNonfiniteCount] += work.faults().count;
        a.status[kNonfiniteFromEnd] = std::max(a.status[kNonfiniteFromEnd], work.faults().from_end);
        a.status[kNonfiniteRows] += work.faults().rows;
    }
}

}  // namespace

int64_t class_moments_workspace(const Features& x, int64_t groups, bool squares) {
    const Plan plan(x, groups, squares);
    return keeping_pages(plan.windows * Worker<float, true>::bytes(plan), groups * plan.slot * 8);
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
