// lloyd_step on the CPU.
//
// Rows are taken in blocks of 128 bytes a column, turned so that they lie across the lanes, and multiplied
// by panels of centres. That leaves bounds on every distance: lloyd_step_panels.h. Where they part the
// nearest centre from all others, it is found; else the distances to the candidates are evaluated as
// resque.h defines them. While the block is in the cache each row is then measured against its centre,
// which gives the inertia, and added to the sums.
//
// The work is cut into windows of rows, a function of the sizes alone. Sums: with few centres every window
// has a slot of its own, of [k, channels] float64, which are added in their order, compensated; with many
// those slots would take more than 1/32 of the features' memory, and the rows, grouped by label,
// are read again by class_moments. So no result depends on the number of threads.
#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

#include "cpu/lloyd_step_panels.h"
#include "dispatch.h"
#include "validate.h"

namespace resque::cpu {
namespace {

bool is_finite(double x) { return std::isfinite(x); }
bool is_finite(Half x) { return (x.bits & 0x7c00) != 0x7c00; }
bool is_finite(BFloat x) { return (x.bits & 0x7f80) != 0x7f80; }

// A sum, and what rounding took from it (Knuth's two-sum, without a branch).
struct Compensated {
    double sum = 0, lost = 0;

    void add(double x) {
        const double next = sum + x, part = next - sum;
        lost += (sum - (next - part)) + (x - part);
        sum = next;
    }
    // Where the sum left the finite numbers `lost` is NaN, and the sum alone is the answer.
    double value() const { return std::isfinite(sum) ? sum + lost : sum; }
};

// What a window finds.
struct Found {
    double inertia;
    int64_t rechecked, nonfinite, nonfinite_from_end, nonfinite_rows;
};

// How the work is cut: fixed by the sizes, so that the result is.
struct Plan {
    int64_t subs;     // blocks of rows that go through the panels together
    int64_t group;    // rows that are labelled, then measured
    int64_t window;   // rows
    int64_t windows;
    bool slots;       // a slot for the sums of each window

    Plan(const Features& x, int64_t k, bool update) {
        const int64_t size = x.dtype == DType::float64 ? 8 : x.dtype == DType::float32 ? 4 : 2;
        const int64_t rows = x.dtype == DType::float64 ? kRows<double> : kRows<float>;
        // Panels beyond the L2 are read for every block: more rows at a time make that less.
        subs = k * x.channels > (int64_t{1} << 18) ? 4 : 1;
        // As many as the L2 keeps beside the rest, so that some have a label in common.
        group = std::clamp<int64_t>((int64_t{1} << 18) / std::max<int64_t>(x.channels * size, 1), 1, 512);
        group = (group + subs * rows - 1) / (subs * rows) * (subs * rows);
        // A number of windows that threads share evenly. 8,192 rows at most are added to a sum one after
        // another: an error of 9.1e-13 of the absolute values.
        constexpr int64_t kShared = 32, kMost = 8192;
        const int64_t least = (x.n + kShared * kMost - 1) / (kShared * kMost) * kShared;
        const int64_t even = (x.n + std::max<int64_t>(least, 1) - 1) / std::max<int64_t>(least, 1);
        window = std::max<int64_t>((even + subs * rows - 1) / (subs * rows), 1) * (subs * rows);
        windows = (x.n + window - 1) / window;
        slots = update && windows * k * x.channels * 8 <=
                              std::max<int64_t>(x.n * x.channels * size / 32, int64_t{8} << 20);
    }
};

// The workspace.
template <typename Real>
struct Layout {
    Space space;
    Panels<Real> panels;
    Found* found;           // [windows]
    double* sums;           // [windows, k, channels] with slots
    int64_t* counts;        // [windows, k] with slots
    int32_t* order;         // [n] without
    int64_t* offsets;       // [k + 1]
    int64_t* status;        // [kStatusWords]
    char* order_workspace;
    char* moments_workspace;

    Layout(const Features& x, int64_t k, bool update, const Plan& plan, void* workspace)
        : space(workspace), panels(k, x.channels, space) {
        const bool again = update && !plan.slots;
        const int64_t slots = plan.slots ? plan.windows : 0;
        found = space.take<Found>(plan.windows);
        sums = space.take<double>(slots * k * x.channels);
        counts = space.take<int64_t>(slots * k);
        order = space.take<int32_t>(again ? x.n : 0);
        offsets = space.take<int64_t>(again ? k + 1 : 0);
        status = space.take<int64_t>(kStatusWords);
        order_workspace = space.take<char>(again ? class_order_workspace(x.n, k, 1) : 0);
        moments_workspace = space.take<char>(again ? class_moments_workspace(x, k, false) : 0);
    }
};

template <typename T>
using RealOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
class Worker {
    using Real = RealOf<T>;

   public:
    Worker(const LloydStep& args, const Plan& plan, const Layout<Real>& layout, int64_t window)
        : a_(args), plan_(plan), panels_(layout.panels), found_(layout.found[window]), window_(window) {
        if (!plan.slots) return;
        sums_ = layout.sums + window * a_.k * a_.x.channels;
        counts_ = layout.counts + window * a_.k;
    }

    void run() {
        found_ = {};
        if (sums_) {
            std::fill_n(sums_, a_.k * a_.x.channels, 0.0);
            std::fill_n(counts_, a_.k, 0);
        }
        const int64_t block = plan_.subs * kRows<Real>;
        const auto lay_out = [&](Space space) {
            y_ = space.take<Real>(block * kColumns);
            scores_ = space.take<Real>(block * a_.k);
            norms_ = space.take<Real>(block);
            distances_ = space.take<double>(plan_.group);
            rows_ = space.take<const T*>(plan_.group);
            places_ = space.take<int32_t>(plan_.group);
            next_ = space.take<int32_t>(plan_.group);
            first_ = space.take<int32_t>(a_.k);
            return space.used();
        };
        const std::unique_ptr<char[]> memory(new char[lay_out(Space(nullptr)) + 64]);
        lay_out(Space(memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64)));
        std::fill_n(first_, a_.k, -1);
        const int64_t end = std::min((window_ + 1) * plan_.window, a_.x.n);
        for (int64_t g = window_ * plan_.window; g < end; g += plan_.group) {
            const int64_t stop = std::min(g + plan_.group, end);
            for (int64_t i = g; i < stop; i += block) {
                multiply(i, end);
                if (stopped()) return;  // with scores that are incomplete
                for (int64_t s = 0; s < plan_.subs && i + s * kRows<Real> < end; ++s) {
                    assign(i + s * kRows<Real>, end, s);
                }
            }
            measure(g, stop);
        }
    }

   private:
    const T* row(int64_t i) const { return static_cast<const T*>(a_.x.data) + i * a_.x.stride_n; }

    void multiply(int64_t begin, int64_t end) {
        const int64_t subs = std::min(plan_.subs, (end - begin + kRows<Real> - 1) / kRows<Real>);
        const int64_t block = subs * kRows<Real>;
        std::fill_n(norms_, block, Real{0});
        for (int64_t b = 0; b < panels_.blocks; ++b) {
            const int64_t width = panels_.columns(b);
            for (int64_t s = 0; s < subs; ++s) {
                const int64_t first = begin + s * kRows<Real>;
                pack_(row(first) + b * kColumns, a_.x.stride_n, std::min<int64_t>(kRows<Real>, end - first),
                      panels_.origin + b * kColumns, width, y_ + s * kRows<Real> * kColumns,
                      norms_ + s * kRows<Real>);
            }
            // What the next packing reads: the next columns, or the first ones of the next rows.
            const bool down = b + 1 == panels_.blocks;
            const int64_t from = down ? begin + block : begin, column = down ? 0 : (b + 1) * kColumns;
            const int64_t rows = std::min(block, (down ? a_.x.n : end) - from);
            const int64_t wide = (panels_.columns(down ? 0 : b + 1) * int64_t{sizeof(T)} + 63) / 64;
            Lines ahead{reinterpret_cast<const char*>(row(from) + column), a_.x.stride_n * int64_t{sizeof(T)},
                        wide, 0};
            int64_t left = rows * wide;  // none where no rows follow
            const int64_t share = (left + panels_.tiles * subs - 1) / (panels_.tiles * subs);
            for (int64_t t = 0; t < panels_.tiles && !stopped(); ++t) {
                const int64_t first = panels_.first(t);
                for (int64_t s = 0; s < subs; ++s) {
                    product_(y_ + s * kRows<Real> * kColumns, panels_.panel(b, t), width,
                             panels_.first(t + 1) - first, b > 0, scores_ + (s * a_.k + first) * kRows<Real>,
                             ahead, std::min(share, left));
                    left -= share;
                }
            }
        }
    }

    void assign(int64_t begin, int64_t end, int64_t sub) {
        const Real* scores = scores_ + sub * a_.k * kRows<Real>;
        Real* norms = norms_ + sub * kRows<Real>;
        double squares[kRows<Real>];
        for (int r = 0; r < kRows<Real>; ++r) {
            squares[r] = norms[r];
            norms[r] = std::sqrt(norms[r]);
        }
        Nearest<Real> found;
        nearest_(scores, a_.k, panels_.base, panels_.slope, norms, &found);
        for (int64_t i = begin; i < std::min(begin + kRows<Real>, end); ++i) {
            const int64_t r = i - begin;
            int64_t label = found.label[r];
            const double above = found.best[r] + 2 * error(label, norms[r]) + 3 * kFloat64Share * squares[r];
            // Also false where anything is not a number.
            if (!(found.second[r] > above)) label = decide(i, scores + r, squares[r], norms[r]);
            a_.labels[i] = label;
        }
    }

    double error(int64_t k, double length) const {
        return panels_.slack[k] + static_cast<double>(panels_.slope[k]) * length;
    }

    // The label of a row that the bounds leave open, by the distances to all that it may belong to.
    int64_t decide(int64_t i, const Real* scores, double square, double length) {
        ++found_.rechecked;
        if (stopped()) return 0;
        if (!std::isfinite(square) && !check_finite(i)) return 0;
        const auto low = [&](int64_t k) {
            return (static_cast<double>(panels_.base[k]) - scores[k * kRows<Real>]) -
                   static_cast<double>(panels_.slope[k]) * length;
        };
        double above = std::numeric_limits<double>::infinity();
        for (int64_t k = 0; k < a_.k; ++k) {
            const double most = low(k) + 2 * error(k, length);
            if (most < above) above = most;
        }
        above += 3 * kFloat64Share * square;
        int64_t label = -1;
        double least = 0;
        for (int64_t k = 0; k < a_.k; ++k) {
            if (low(k) > above) continue;
            const double other = distance_(row(i), a_.centers + k * a_.x.channels, a_.x.channels);
            if (label < 0 || other < least) label = k, least = other;
        }
        return label;
    }

    bool check_finite(int64_t i) {
        const int64_t width = a_.x.channels;
        int64_t bad = 0;
        for (int64_t c = 0; c < width; ++c) {
            if (is_finite(row(i)[c])) continue;
            found_.nonfinite_from_end = std::max(found_.nonfinite_from_end, a_.x.n * width - (i * width + c));
            ++bad;
        }
        found_.nonfinite += bad;
        found_.nonfinite_rows += bad > 0;
        return bad == 0;
    }

    // Rows of one label together, so that their centre and their sum stay in the L1.
    void measure(int64_t begin, int64_t end) {
        std::fill_n(distances_, end - begin, 0.0);
        for (int64_t i = end - 1; i >= begin; --i) {
            int32_t& first = first_[a_.labels[i]];
            next_[i - begin] = first;
            first = static_cast<int32_t>(i - begin);
        }
        for (int64_t i = begin; i < end; ++i) {
            const int64_t label = a_.labels[i];
            int32_t place = first_[label];
            if (place < 0) continue;
            first_[label] = -1;
            int64_t count = 0;
            for (; place >= 0; place = next_[place]) {
                rows_[count] = row(begin + place);
                places_[count++] = place;
            }
            measure_rows(label, count);
        }
        for (int64_t i = begin; i < end; ++i) {
            found_.inertia += distances_[i - begin];
            if (a_.distances) a_.distances[i] = distances_[i - begin];
        }
    }

    void measure_rows(int64_t label, int64_t count) {
        constexpr int64_t kTogether = 4, kPart = 1024;  // rows and columns at once
        const int64_t width = a_.x.channels;
        if (sums_) counts_[label] += count;
        for (int64_t c = 0; c < width; c += kPart) {
            const int64_t part = std::min(kPart, width - c), at = label * width + c;
            for (int64_t i = 0; i < count; i += kTogether) {
                const int some = static_cast<int>(std::min(kTogether, count - i));
                const T* row[kTogether];
                for (int r = 0; r < some; ++r) row[r] = rows_[i + r] + c;
                double squares[kTogether] = {};
                measure_(row, some, a_.centers + at, part, squares, sums_ ? sums_ + at : nullptr);
                for (int r = 0; r < some; ++r) distances_[places_[i + r]] += squares[r];
            }
        }
    }

    const LloydStep& a_;
    const Plan& plan_;
    const Panels<Real>& panels_;
    Found& found_;
    int64_t window_;
    double* sums_ = nullptr;    // this window's slot
    int64_t* counts_ = nullptr;
    Real* y_;       // [subs, a block's columns, kRows]
    Real* scores_;  // [subs, k, kRows]
    Real* norms_;   // [subs, kRows]: the squares of lengths, then the lengths
    double* distances_;  // [group]
    const T** rows_;     // [group] rows of a label
    int32_t* places_;    // [group] and their places in the group
    int32_t* next_;      // [group] the next row of the same label, or -1
    int32_t* first_;     // [k] the first row of each label, or -1
    void (*pack_)(const T*, int64_t, int64_t, const Real*, int64_t, Real*, Real*) =
        RESQUE_PICK(pack_rows<T, Real>);
    void (*product_)(const Real*, const Real*, int64_t, int64_t, bool, Real*, Lines&, int64_t) =
        RESQUE_PICK(product<Real>);
    void (*nearest_)(const Real*, int64_t, const Real*, const Real*, const Real*, Nearest<Real>*) =
        RESQUE_PICK(nearest<Real>);
    double (*distance_)(const T*, const double*, int64_t) = RESQUE_PICK(distance<T>);
    void (*measure_)(const T* const*, int, const double*, int64_t, double*, double*) =
        RESQUE_PICK(measure<T>);
};

// The slots of all windows, added in their order.
template <typename Real>
void add_slots(const LloydStep& a, const Plan& plan, const Layout<Real>& layout, int threads) {
    const int64_t width = a.x.channels;
    parallel_for(a.k, threads, plan.windows * a.k * width * 8, [&](int64_t k) {
        a.counts[k] = 0;
        for (int64_t w = 0; w < plan.windows; ++w) a.counts[k] += layout.counts[w * a.k + k];
        Compensated sums[kColumns];
        for (int64_t c = 0; c < width; c += kColumns) {
            const int64_t some = std::min(kColumns, width - c);
            std::fill_n(sums, some, Compensated{});
            for (int64_t w = 0; w < plan.windows; ++w) {
                const double* slot = layout.sums + (w * a.k + k) * width + c;
                for (int64_t i = 0; i < some; ++i) sums[i].add(slot[i]);
            }
            for (int64_t i = 0; i < some; ++i) a.sums[k * width + c + i] = sums[i].value();
        }
    });
}

template <typename T>
void run(const LloydStep& a, int threads) {
    const Plan plan(a.x, a.k, a.counts);
    Layout<RealOf<T>> layout(a.x, a.k, a.counts, plan, a.workspace);
    layout.panels.fill(a.centers, threads);
    const int64_t bytes = a.x.n * (a.x.channels + 8) * (a.k + 8);  // of time
    parallel_for(plan.windows, threads, bytes, [&](int64_t w) { Worker<T>(a, plan, layout, w).run(); });
    if (plan.slots) {
        add_slots(a, plan, layout, threads);
    } else if (a.counts) {
        std::fill_n(layout.status, static_cast<int>(kStatusWords), 0);
        class_order({a.labels, true, 1, a.x.n, a.k, 1, nullptr, layout.order, layout.offsets, layout.status,
                     layout.order_workspace},
                    threads);
        class_moments({a.x, layout.order, layout.offsets, a.k, false, false, a.counts, a.sums, nullptr,
                       layout.status, layout.moments_workspace},
                      threads);
    }
    Compensated inertia;
    *a.rechecked = 0;
    for (int64_t w = 0; w < plan.windows; ++w) {
        const Found& found = layout.found[w];
        inertia.add(found.inertia);
        *a.rechecked += found.rechecked;
        a.status[kNonfiniteCount] += found.nonfinite;
        a.status[kNonfiniteFromEnd] = std::max(a.status[kNonfiniteFromEnd], found.nonfinite_from_end);
        a.status[kNonfiniteRows] += found.nonfinite_rows;
    }
    *a.inertia = inertia.value();
}

}  // namespace

int64_t lloyd_step_workspace(const Features& x, int64_t k, bool update) {
    const Plan plan(x, k, update);
    if (x.dtype == DType::float64) return Layout<double>(x, k, update, plan, nullptr).space.used();
    return Layout<float>(x, k, update, plan, nullptr).space.used();
}

void lloyd_step(const LloydStep& a, int threads) {
    validate(a);
    dispatch<Half, BFloat>(a.x.dtype,
                           [&](auto type) { run<typename decltype(type)::type>(a, threads); });
}

}  // namespace resque::cpu
