// The bins of one histogram as resque.h defines them, value by value.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace resque::cpu {

template <typename X>  // float or double
struct RowBins {
    X first, last, delta, step;
    int bins;

    RowBins(X least, X most, int count) : first(least), last(most), bins(count) {
        if (first == last) first -= X(0.5), last += X(0.5);
        delta = last - first;
        step = delta / static_cast<X>(bins);
    }

    X edge(int i) const { return first + static_cast<X>(i) * step; }  // but the last

    bool ascending() const {
        bool ascending = std::isfinite(delta) && edge(bins - 1) < last;
        for (int i = 1; i < bins; ++i) ascending = ascending && edge(i - 1) < edge(i);
        return ascending;
    }

    // Whether every value lies in one of the two bins at the inner edge that is nearest to it by
    // (x - first) * (1 / step). An edge is off its place by half a rounding, at most eps / 2 times the
    // greatest magnitude, and by eps * delta for its step; the nearest edge is found to within
    // 2 * eps * bins. With a step of 2 * eps times that magnitude all this is 0.25 of a step and some
    // 1e-4, less than half. Then edges ascend, numpy's rule gives the bin whose edges enclose the value,
    // and the edges for a number of bins are, to the bit, among those for two or four times as many:
    // scaling a step by a power of two rounds nothing as long as no step is denormal.
    bool well_apart() const {
        constexpr X eps = std::numeric_limits<X>::epsilon();
        return std::isfinite(delta) && step >= 2 * eps * std::max(std::abs(first), std::abs(last)) &&
               step >= std::numeric_limits<X>::min() / eps;
    }

    int place(X x) const {
        return std::min(static_cast<int>((x - first) / delta * static_cast<X>(bins)), bins - 1);
    }

    int find(X x) const {
        int b = place(x);
        b -= x < edge(b);
        b += x >= edge(b + 1) && b != bins - 1;
        return b;
    }
};

// The bins of `size` values as float64 edges make them.
template <typename X>
void find_wide(const X* values, int64_t size, double least, double most, int bins, int* found) {
    const double scale = std::isfinite(most - least) ? 1 : 0.5;
    const RowBins<double> by(least * scale, most * scale, bins);
    const bool ascending = by.ascending();
    for (int64_t i = 0; i < size; ++i) {
        const double x = values[i] * scale;
        found[i] = ascending ? by.find(x) : by.delta == 0 ? bins / 2 : by.place(x);
    }
}

}  // namespace resque::cpu
