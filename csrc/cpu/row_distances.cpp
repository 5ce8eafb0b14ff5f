// row_distances on the CPU.
//
// A group of pairs, 32 of them, lies across the lanes of its histograms: bin by bin, the counts of a bin
// side by side, 16 bits each. Eight rows at a time are looked through for their ranges and then binned,
// each into its own lane, while they are in the cache: by bit planes where the processor has what that
// takes (row_masks.h), else by adding one for every value. All that follows works on all lanes at once:
// a histogram of 64 bins is folded into those of 32 and 16, heights are sorted by a network that is the
// same for every lane. The divergences take logarithms and roots of small integers, from tables; they go
// lane by lane, both histograms' terms of a bin meeting in one product of four numbers.
// A row of more than kLongRow values is binned as eight pieces, and its counts have 32 bits.
//
// Bins are numpy's to the last value: see row_bins.h for how few operations that takes where the edges
// lie well apart, and for the rows where they do not, which go value by value.
//
// The partition into groups and tasks is a function of the sizes alone, and sums over rows are carried
// in two float64 each, so the result depends neither on the number of threads nor, but for its last bit,
// on how pairs are batched.
//
// For 512 float32 and (16, 32, 64) bins one of 100,000 pairs takes 0.85 to 1.0 us of a core at best
// (Intel Xeon, Emerald Rapids, 2.1 GHz) where bits are counted eight words at a time, and 1.3 with
// AVX-512 alone; on a busy machine up to a half more. Of it bins take 0.4, roots and logarithms 0.17,
// ranges 0.16, sorting 0.13; memory at 10 GB/s a core would take 0.4 for all. The next step: a fifth of
// binning waits for the fetches of rows to come. With AVX2 a pair takes 1.7 to 2.8 us, but of float64 10,
// since g++ takes conditionals of 64 bytes lane by lane there.
#include "cpu/row_bins.h"
#include "cpu/class_moments_rows.h"
#include "cpu/parallel.h"
#include "cpu/row_distances_rows.h"
#include "dispatch.h"
#include "validate.h"

namespace resque::cpu {

double xlogx(double c) { return c > 0 ? c * std::log(c) : 0; }

CountTerms count_terms(double c) {
    const double root = std::sqrt(c), log = c > 0 ? std::log(c) : 0, entropy = xlogx(c);
    return {{root, entropy, c, entropy}, {root, c > 0 ? 1.0 : 0.0, log, 1}};
}

namespace {

constexpr int64_t kLongRow = 8192;
constexpr int64_t kMostTasks = 64;

// Hands out the workspace, line by line.
struct Space {
    uintptr_t at;

    template <typename V>
    V* take(int64_t count) {
        const uintptr_t start = at;
        at += (count * static_cast<int64_t>(sizeof(V)) + kLine - 1) / kLine * kLine;
        return reinterpret_cast<V*>(start);
    }
};

// How the work is cut, and where its intermediate results lie.
struct Plan {
    int64_t n, m, bin_counts, columns, sides;
    bool long_rows;
    int64_t pairs;   // of a group
    int64_t groups, tasks;
    int64_t block;   // pairs whose rows are read at once
    int64_t lines;   // of one side's histograms: one more each than there are bins
    int64_t limit;   // of the tables
    int64_t scratch; // doubles for the rows of a block, where they have to be made

    Plan(const Features& x, int64_t how_many, int64_t all_bins, bool shared)
        : n(x.n), m(x.channels), bin_counts(how_many), columns(shared ? 8 : 4), sides(shared ? 4 : 2) {
        long_rows = m > kLongRow;
        pairs = std::clamp<int64_t>(n / 16, 1, long_rows ? 4 : 32);
        groups = (n + pairs - 1) / pairs;
        tasks = std::min(groups, kMostTasks);
        block = long_rows ? 1 : kStreams;
        lines = all_bins + how_many;
        limit = std::min<int64_t>({m, 4096, 8 * n});
        scratch = x.positions > 1 ? (2 * block + 1) * m : 0;
    }
};

// The part of a task: what it finds, and what it works in.
struct Part {
    double *sums, *lost;      // [bin_counts, columns]
    int64_t* float64_edges;   // [bin_counts]
    int64_t* left_out;        // [1]
    int64_t* status[2];       // [kStatusWords] old, new
    int64_t found;            // bytes so far, to begin with zeros
    char* histograms;         // [sides, lines] of kLine bytes
    char* masks;              // [sides, bin_counts] of kLine bytes
    char* sorting;            // [2, 257] of kLine bytes
    double* values;           // [lanes, bin_counts, columns]
    double* rows;             // [2 * block + 1, m]

    Part(Space& space, const Plan& p) {
        const uintptr_t start = space.at;
        sums = space.take<double>(p.bin_counts * p.columns);
        lost = space.take<double>(p.bin_counts * p.columns);
        float64_edges = space.take<int64_t>(p.bin_counts);
        left_out = space.take<int64_t>(1);
        for (auto& words : status) words = space.take<int64_t>(kStatusWords);
        found = static_cast<int64_t>(space.at - start);
        histograms = space.take<char>(p.sides * p.lines * kLine);
        masks = space.take<char>(p.sides * p.bin_counts * kLine);
        sorting = space.take<char>(2 * 257 * kLine);
        values = space.take<double>(32 * p.bin_counts * p.columns);
        rows = space.take<double>(p.scratch);
    }
};

// sum + lost += x, without a rounding (Knuth, The Art of Computer Programming 2, 4.2.2, theorem B).
void add(double x, double& sum, double& lost) {
    const double next = sum + x, part = next - sum;
    lost += (sum - (next - part)) + (x - part);
    sum = next;
}

// Rows that stand in memory as T and are binned from Row: T itself, or the means of several positions.
template <typename T, typename Row, typename Count>
class Worker {
    using X = Binned<T>;
    static constexpr int kWide = kLanes<Count>;

   public:
    Worker(const RowDistances& args, const Plan& plan, const CountTables& tables, const Part& part)
        : a_(args), plan_(plan), tables_(tables), part_(part) {
        for (int64_t k = 0; k < a_.bin_counts; ++k) {
            first_line_[k] = k ? first_line_[k - 1] + a_.bins[k - 1] + 1 : 0;
            base_[k] = k;
            for (int64_t j = 0; j < a_.bin_counts; ++j) {
                const int ratio = a_.bins[j] / a_.bins[k];
                const bool finer = ratio * a_.bins[k] == a_.bins[j] && (ratio & (ratio - 1)) == 0;
                if (finer && a_.bins[j] > a_.bins[base_[k]]) base_[k] = j;
            }
        }
    }

    void group(int64_t begin, int64_t end) {
        std::fill_n(part_.histograms, plan_.sides * plan_.lines * kLine, 0);
        std::fill_n(part_.masks, plan_.sides * a_.bin_counts * kLine, 0);
        for (int64_t i = begin; i < end; i += plan_.block) {
            read(i, std::min(plan_.block, end - i), i - begin);
        }
        for (int q = 0; q < plan_.sides; ++q) {
            for (int64_t k = 0; k < a_.bin_counts; ++k) {
                const int64_t base = base_[k];
                if (base == k) continue;
                fold_(counts(q, base), a_.bins[base] / a_.bins[k], a_.bins[k], mask(q, k), counts(q, k));
            }
        }
        for (int64_t k = 0; k < a_.bin_counts; ++k) measure(k, end - begin);
        finish(begin, end);
    }

   private:
    Count* counts(int q, int64_t k) const {
        return reinterpret_cast<Count*>(part_.histograms + (q * plan_.lines + first_line_[k]) * kLine);
    }
    Count* mask(int q, int64_t k) const {
        return reinterpret_cast<Count*>(part_.masks + (q * a_.bin_counts + k) * kLine);
    }

    const Row* load(int side, int64_t i, int64_t slot) {
        const Features& x = side ? a_.x_new : a_.x_old;
        const T* row = static_cast<const T*>(x.data) + i * x.stride_n;
        if constexpr (std::is_same_v<T, Row>) {
            if (x.positions == 1) return row;
        }
        X* to = reinterpret_cast<X*>(part_.rows + plan_.m) + (side * plan_.block + slot) * plan_.m;
        pool_(x, row, part_.rows);
        std::copy_n(part_.rows, plan_.m, to);
        if constexpr (std::is_same_v<X, Row>) return to;
        return nullptr;
    }

    // The row that takes row i's place in the next block, null for none, or where rows are made.
    const Row* after(int side, int64_t i) const {
        const Features& x = side ? a_.x_new : a_.x_old;
        if constexpr (std::is_same_v<T, Row>) {
            if (x.positions == 1 && !plan_.long_rows && i + plan_.block < plan_.n) {
                return static_cast<const T*>(x.data) + (i + plan_.block) * x.stride_n;
            }
        }
        return nullptr;
    }

    // The histograms of `some` pairs from pair i on.
    void read(int64_t i, int64_t some, int64_t lane) {
        const Row* rows[2][kStreams];
        X least[4][kStreams], most[4][kStreams];
        for (int64_t r = 0; r < some; ++r) {
            bool finite = true;
            for (int s = 0; s < 2; ++s) {
                rows[s][r] = load(s, i + r, r);
                if (range_(rows[s][r], plan_.m, &least[s][r], &most[s][r])) continue;
                find_faults(s, rows[s][r], i + r);
                finite = false;
            }
            good_[lane + r] = finite;
            *part_.left_out += !finite;
            least[2][r] = least[3][r] = std::min(least[0][r], least[1][r]);
            most[2][r] = most[3][r] = std::max(most[0][r], most[1][r]);
            width_[lane + r][0] = least[2][r], width_[lane + r][1] = most[2][r];
        }
        for (int q = 0; q < plan_.sides; ++q) {
            for (int64_t k = 0; k < a_.bin_counts; ++k) {
                if (base_[k] != k) continue;
                Stream<Row> streams[kStreams] = {};
                bool any = false;
                for (int64_t r = 0; r < some; ++r) {
                    if (!good_[lane + r]) continue;
                    const RowBins<X> by(least[q][r], most[q][r], a_.bins[k]);
                    if (by.well_apart()) {
                        streams[r] = {rows[q % 2][r], by.first, by.step,
                                      static_cast<X>(by.bins) / by.delta,
                                      q < 2 ? after(q, i + r) : nullptr};
                        any = true;
                        continue;
                    }
                    for (int64_t j = 0; j < a_.bin_counts; ++j) {
                        if (base_[j] == k) count_closely(rows[q % 2][r], least[q][r], most[q][r], q, j, lane + r);
                    }
                }
                if (!any) continue;
                if constexpr (sizeof(Count) == 2) {
                    bin_(streams, plan_.m, a_.bins[k], counts(q, k) + lane);
                } else {
                    bin_long(streams[0], a_.bins[k], counts(q, k) + lane);
                }
            }
        }
    }

    // Eight pieces of a row, each into a lane of its own that then goes into one of 32 bits.
    void bin_long(const Stream<Row>& whole, int bins, Count* to) {
        uint16_t lanes[257 * kLanes<uint16_t>];
        const int64_t piece = plan_.m / kStreams;
        constexpr int64_t kMost = 65535;
        const auto bin = [&](const Stream<Row>(&streams)[kStreams], int64_t length) {
            std::fill_n(lanes, (bins + 1) * kLanes<uint16_t>, 0);
            bin_(streams, length, bins, lanes);
            for (int b = 0; b < bins; ++b) {
                for (int r = 0; r < kStreams; ++r) to[b * kWide] += lanes[b * kLanes<uint16_t> + r];
            }
        };
        for (int64_t c = 0; c < piece && !stopped(); c += kMost) {
            Stream<Row> streams[kStreams];
            for (int r = 0; r < kStreams; ++r) {
                streams[r] = whole;
                streams[r].row += r * piece + c;
            }
            bin(streams, std::min(kMost, piece - c));
        }
        Stream<Row> rest[kStreams] = {whole};
        rest[0].row += kStreams * piece;
        bin(rest, plan_.m - kStreams * piece);
    }

    // One row whose edges lie close, for one number of bins, whose lane is then not to be folded into.
    void count_closely(const Row* row, X least, X most, int q, int64_t k, int64_t lane) {
        constexpr int64_t kSome = 256;
        X values[kSome];
        int found[kSome];
        const RowBins<X> by(least, most, a_.bins[k]);
        const bool ascending = by.ascending();
        part_.float64_edges[k] += !ascending;
        mask(q, k)[lane] = static_cast<Count>(-1);
        Count* const to = counts(q, k) + lane;
        for (int64_t c = 0; c < plan_.m; c += kSome) {
            const int64_t some = std::min(kSome, plan_.m - c);
            widen_(row + c, some, values);
            if (ascending) {
                for (int64_t i = 0; i < some; ++i) found[i] = by.find(values[i]);
            } else {
                find_wide(values, some, least, most, a_.bins[k], found);
            }
            for (int64_t i = 0; i < some; ++i) ++to[found[i] * kWide];
        }
    }

    void find_faults(int side, const Row* row, int64_t i) {
        int64_t* const status = part_.status[side];
        ++status[kNonfiniteRows];
        for (int64_t c = 0; c < plan_.m; ++c) {
            X x;
            widen_(row + c, 1, &x);
            if (std::isfinite(x)) continue;
            ++status[kNonfiniteCount];
            status[kNonfiniteFromEnd] = std::max(status[kNonfiniteFromEnd], (plan_.n - i) * plan_.m - c);
        }
    }

    // The distances of all lanes for one number of bins.
    void measure(int64_t k, int64_t lanes) {
        const int bins = a_.bins[k];
        const double m = static_cast<double>(plan_.m);
        int64_t apart[2][kWide];
        sorted_(counts(0, k), counts(1, k), bins, reinterpret_cast<Count*>(part_.sorting), apart[0]);
        if (a_.shared) cumulative_(counts(2, k), counts(3, k), bins, apart[1]);
        Count most[2][kWide], differ[2][kWide];  // of the own ranges, then of the shared ones
        compare_(counts(0, k), counts(1, k), bins, most[0], differ[0]);
        if (a_.shared) compare_(counts(2, k), counts(3, k), bins, most[1], differ[1]);
        for (int64_t l = 0; l < lanes; ++l) {
            double* const out = part_.values + (l * a_.bin_counts + k) * plan_.columns;
            if (!good_[l]) {
                std::fill_n(out, plan_.columns, std::numeric_limits<double>::quiet_NaN());
                continue;
            }
            out[0] = static_cast<double>(apart[0][l]) / (m * bins);
            diverge(counts(0, k) + l, counts(1, k) + l, bins, most[0][l], differ[0][l] != 0, out + 1);
            if (!a_.shared) continue;
            out[4] = static_cast<double>(apart[1][l]) / m * (width_[l][1] / bins - width_[l][0] / bins);
            diverge(counts(2, k) + l, counts(3, k) + l, bins, most[1][l], differ[1][l] != 0, out + 5);
        }
    }

    // jensen_shannon, bhattacharyya, kl. With p = a / m and q = b / m the first is
    // log 2 + sum(p log p + q log q - (p + q) log(p + q)) / 2, and the logarithms of m cancel.
    void diverge(const Count* a, const Count* b, int bins, int64_t most, bool differ, double* out) {
        // Equal histograms are no distance apart, which rounding would not leave so.
        if (!differ) {
            std::fill_n(out, 3, 0.0);
            return;
        }
        const double m = static_cast<double>(plan_.m);
        CountSums sums;
        (most <= tables_.limit ? sums_ : sums_beyond_)(a, b, bins, tables_, &sums);
        out[0] = std::max(std::log(2.0) + sums.entropy / (2 * m), 0.0);
        out[1] = std::max(1 - sums.roots / m, 0.0);
        out[2] = sums.kl / m;
    }

    void finish(int64_t begin, int64_t end) {
        const int64_t columns = a_.bin_counts * plan_.columns;
        for (int64_t i = begin; i < end; ++i) {
            const double* const values = part_.values + (i - begin) * columns;
            if (a_.rows) std::copy_n(values, columns, a_.rows + i * columns);
            if (a_.skip_nonfinite && !good_[i - begin]) continue;
            for (int64_t c = 0; c < columns; ++c) add(values[c], part_.sums[c], part_.lost[c]);
        }
        if (!a_.counts) return;
        const int64_t all_bins = plan_.lines - a_.bin_counts;
        for (int64_t i = begin; i < end; ++i) {
            for (int q = 0; q < plan_.sides; ++q) {
                int32_t* to = a_.counts + (i * plan_.sides + q) * all_bins;
                for (int64_t k = 0; k < a_.bin_counts; ++k) {
                    const Count* const from = counts(q, k) + (i - begin);
                    for (int b = 0; b < a_.bins[k]; ++b) *to++ = static_cast<int32_t>(from[b * kWide]);
                }
            }
        }
    }

    const RowDistances& a_;
    const Plan& plan_;
    const CountTables& tables_;
    const Part& part_;
    int64_t first_line_[kMaxBinCounts], base_[kMaxBinCounts];
    bool good_[32];
    double width_[32][2];
    void (*pool_)(const Features&, const T*, double*) = RESQUE_PICK(pool_row<T>);
    bool (*range_)(const Row*, int64_t, X*, X*) = RESQUE_PICK_ICL(row_range<Row>);
    void (*widen_)(const Row*, int64_t, X*) = RESQUE_PICK_ICL(widen_row<Row>);
    void (*bin_)(const Stream<Row> (&)[kStreams], int64_t, int, uint16_t*) = RESQUE_PICK_ICL(bin_rows<Row>);
    void (*fold_)(const Count*, int, int, const Count*, Count*) = RESQUE_PICK_ICL(fold<Count>);
    void (*sorted_)(const Count*, const Count*, int, Count*, int64_t*) = RESQUE_PICK_ICL(sorted_apart<Count>);
    void (*cumulative_)(const Count*, const Count*, int, int64_t*) = RESQUE_PICK_ICL(cumulative_apart<Count>);
    void (*compare_)(const Count*, const Count*, int, Count*, Count*) =
        RESQUE_PICK_ICL(compare_lanes<Count>);
    void (*sums_)(const Count*, const Count*, int, const CountTables&, CountSums*) =
        RESQUE_PICK_ICL(count_sums<Count>);
    void (*sums_beyond_)(const Count*, const Count*, int, const CountTables&, CountSums*) =
        RESQUE_PICK_ICL(count_sums_beyond<Count>);
};

template <typename T, typename Row, typename Count>
void run(const RowDistances& a, const Plan& plan, int threads) {
    Space space{reinterpret_cast<uintptr_t>(a.workspace)};
    CountTerms* const terms = space.take<CountTerms>(plan.limit + 1);
    double* const entropies = space.take<double>(2 * plan.limit + 1);
    for (int64_t c = 0; c <= plan.limit; ++c) terms[c] = count_terms(static_cast<double>(c));
    for (int64_t c = 0; c <= 2 * plan.limit; ++c) entropies[c] = xlogx(static_cast<double>(c));
    const CountTables tables{terms, entropies, plan.limit};

    const uintptr_t start = space.at;
    const Part sized(space, plan);
    const auto part = [&](int64_t task) {
        Space of_task{start + task * (space.at - start)};
        return Part(of_task, plan);
    };
    const int64_t each = plan.tasks ? (plan.groups + plan.tasks - 1) / plan.tasks : 0;
    // Binning reads some 6 GB/s a thread; a bin costs about as much as 16 bytes.
    const int64_t bytes = plan.n * (2 * plan.m * a.x_old.positions * static_cast<int64_t>(sizeof(T)) +
                                    16 * plan.sides * plan.lines);
    parallel_for(plan.tasks, threads, bytes, [&](int64_t task) {
        const Part mine = part(task);
        std::fill_n(reinterpret_cast<char*>(mine.sums), mine.found, 0);
        Worker<T, Row, Count> worker(a, plan, tables, mine);
        for (int64_t g = task * each; g < std::min((task + 1) * each, plan.groups) && !stopped(); ++g) {
            worker.group(g * plan.pairs, std::min((g + 1) * plan.pairs, plan.n));
        }
    });

    const int64_t columns = a.bin_counts * plan.columns;
    std::fill_n(a.float64_edges, a.bin_counts, 0);
    *a.left_out = 0;
    for (int64_t task = 0; task < plan.tasks; ++task) {
        const Part mine = part(task);
        for (int64_t k = 0; k < a.bin_counts; ++k) a.float64_edges[k] += mine.float64_edges[k];
        if (a.skip_nonfinite) *a.left_out += *mine.left_out;
        int64_t* const status[] = {a.status_old, a.status_new};
        for (int s = 0; s < 2; ++s) {
            status[s][kNonfiniteCount] += mine.status[s][kNonfiniteCount];
            status[s][kNonfiniteRows] += mine.status[s][kNonfiniteRows];
            status[s][kNonfiniteFromEnd] =
                std::max(status[s][kNonfiniteFromEnd], mine.status[s][kNonfiniteFromEnd]);
        }
    }
    for (int64_t c = 0; c < columns; ++c) {
        double sum = 0, lost = 0;
        for (int64_t task = 0; task < plan.tasks; ++task) {
            const Part mine = part(task);
            add(mine.sums[c], sum, lost);
            lost += mine.lost[c];
        }
        a.sums[c] = sum + lost;
    }
}

}  // namespace

int64_t row_distances_workspace(const Features& x, int64_t bin_counts, int64_t all_bins, bool shared) {
    const Plan plan(x, bin_counts, all_bins, shared);
    Space space{0};
    space.take<CountTerms>(plan.limit + 1);
    space.take<double>(2 * plan.limit + 1);
    for (int64_t task = 0; task < plan.tasks; ++task) Part(space, plan);
    return static_cast<int64_t>(space.at);
}

void row_distances(const RowDistances& a, int threads) {
    validate(a);
    int64_t all_bins = 0;
    for (int64_t k = 0; k < a.bin_counts; ++k) all_bins += a.bins[k];
    const Plan plan(a.x_old, a.bin_counts, all_bins, a.shared);
    dispatch<Half, BFloat>(a.x_old.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        dispatch_bool(a.x_old.positions > 1, [&](auto pooled) {
            using Row = std::conditional_t<decltype(pooled)::value, Binned<T>, T>;
            dispatch_bool(plan.long_rows, [&](auto long_rows) {
                using Count = std::conditional_t<decltype(long_rows)::value, uint32_t, uint16_t>;
                run<T, Row, Count>(a, plan, threads);
            });
        });
    });
}

}  // namespace resque::cpu
