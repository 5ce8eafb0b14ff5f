// class_order and class_moments in one call, as a small batch costs less than what lies around it.
//
// Added to sums that are there, a batch first gets sums of its own, of the groups that have rows alone:
// it touches few of many groups, and is added only when all of it is known to be right.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/parallel.h"
#include "validate.h"

namespace resque::cpu {
namespace {

// Room for arrays one after another, found at once; uninitialised. What a small batch takes stays with
// the thread that calls: memory that comes anew costs a page fault each 4 KB, as long as summing 8 KB.
class Scratch {
   public:
    template <typename T>
    int64_t reserve(int64_t count) {
        const int64_t at = bytes_;
        bytes_ += (std::max<int64_t>(count, 0) * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        return at;
    }
    void allocate() {
        constexpr int64_t kKept = int64_t{4} << 20;
        static thread_local std::vector<char> kept;
        if (bytes_ > kKept) own_.reset(new char[bytes_]);
        else if (static_cast<int64_t>(kept.size()) < bytes_) kept.resize(bytes_);
        memory_ = own_ ? own_.get() : kept.data();
    }
    template <typename T>
    T* at(int64_t place) const {
        return reinterpret_cast<T*>(memory_ + place);
    }

   private:
    int64_t bytes_ = 0;
    std::unique_ptr<char[]> own_;
    char* memory_ = nullptr;
};

// The groups that have rows, one after another, and where each starts.
int64_t list_filled(const int64_t* offsets, int64_t groups, int64_t* filled, int64_t* starts) {
    int64_t found = 0;
    for (int64_t g = 0; g < groups; ++g) {
        if (offsets[g] == offsets[g + 1]) continue;
        filled[found] = g;
        starts[found++] = offsets[g];
    }
    return found;
}

void add_to(const LabelledMoments& a, const ClassMoments& m, const int64_t* filled, int64_t count,
            int threads) {
    const CallScope to_the_end(nullptr);  // half a batch is never there
    const int64_t channels = a.x.channels;
    const auto add = [channels](const double* from, double* to) {
        std::transform(from, from + channels, to, to, [](double x, double y) { return x + y; });
    };
    constexpr int64_t kGroups = 16;  // a task
    parallel_for((count + kGroups - 1) / kGroups, threads, count * channels * 24, [&](int64_t task) {
        for (int64_t i = task * kGroups; i < std::min((task + 1) * kGroups, count); ++i) {
            const int64_t g = filled[i];
            a.counts[g] += m.counts[i];
            add(m.sums + i * channels, a.sums + g * channels);
            if (a.squares) add(m.sumsq + i * channels, a.sumsq + g * channels);
        }
    });
    for (int64_t i = 0; i < count; ++i) a.seen[filled[i] / a.blocks] += m.offsets[i + 1] - m.offsets[i];
}

}  // namespace

void labelled_moments(const LabelledMoments& a, int threads) {
    const int64_t n = a.x.n, groups = a.classes * a.blocks;
    ClassOrder sort{a.labels, a.labels_int64, a.label_stride, n, a.classes, a.blocks, a.seen, nullptr,
                    nullptr, a.status, nullptr};
    validate(sort);
    // As many groups as the batch can fill; how class_moments cuts its work hangs on their number.
    const int64_t own = a.seen ? std::max<int64_t>(std::min(n, groups), 1) : groups;
    ClassMoments m{a.x, nullptr, nullptr, own, a.squares, a.skip_nonfinite, a.counts, a.sums, a.sumsq,
                   a.status, nullptr, a.zeroed};
    validate(m);

    Scratch scratch;
    const int64_t order = scratch.reserve<int32_t>(n), offsets = scratch.reserve<int64_t>(groups + 1);
    const int64_t sorting = scratch.reserve<char>(class_order_workspace(n, a.classes, a.blocks));
    const int64_t summing = scratch.reserve<char>(class_moments_workspace(a.x, own, a.squares));
    const int64_t results = a.seen ? own : 0;
    const int64_t filled = scratch.reserve<int64_t>(results), starts = scratch.reserve<int64_t>(results + 1);
    const int64_t counts = scratch.reserve<int64_t>(results);
    const int64_t sums = scratch.reserve<double>(results * a.x.channels);
    const int64_t sumsq = scratch.reserve<double>(a.squares ? results * a.x.channels : 0);
    scratch.allocate();

    std::fill_n(a.status, kStatusWords, 0);
    sort.order = scratch.at<int32_t>(order);
    sort.offsets = scratch.at<int64_t>(offsets);
    sort.workspace = scratch.at<char>(sorting);
    class_order(sort, threads);
    m.order = sort.order;
    m.offsets = sort.offsets;
    m.workspace = scratch.at<char>(summing);
    if (!a.seen) return class_moments(m, threads);

    if (a.status[kBadLabelFromEnd] != 0) return;
    const int64_t found = list_filled(sort.offsets, groups, scratch.at<int64_t>(filled),
                                      scratch.at<int64_t>(starts));
    std::fill_n(scratch.at<int64_t>(starts) + found, own + 1 - found, sort.offsets[groups]);
    m.offsets = scratch.at<int64_t>(starts);
    m.counts = scratch.at<int64_t>(counts);
    m.sums = scratch.at<double>(sums);
    m.sumsq = scratch.at<double>(sumsq);
    m.zeroed = true;  // nobody reads those of empty groups
    class_moments(m, threads);
    if (a.status[kNonfiniteCount] != 0 && !a.skip_nonfinite) return;
    if (stopped()) throw Stopped{};
    add_to(a, m, scratch.at<int64_t>(filled), found, threads);
}

}  // namespace resque::cpu
