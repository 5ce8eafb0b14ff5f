// row_distances on small inputs of every kind, compared with the definition in resque.h, value by value.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "support.h"

namespace {

struct Case {
    DType dtype;
    int64_t n, channels, positions;
    std::vector<int32_t> bins;
    bool channels_last, skip;
    int64_t shift;  // elements by which the data are off an address of 16 bytes
    bool shared = true;
};

// numpy's histogram of a row over low ... high; E is float or double.
template <typename E>
std::vector<int32_t> histogram(const std::vector<double>& row, E low, E high, int bins, bool* wide) {
    E first = low, last = high;
    if (low == high) first -= E(0.5), last += E(0.5);
    const E delta = last - first, step = delta / static_cast<E>(bins);
    std::vector<E> edges(bins + 1);
    bool ascending = std::isfinite(delta);
    for (int i = 0; i < bins; ++i) {
        const E product = static_cast<E>(i) * step;
        edges[i] = first + product;
    }
    edges[bins] = last;
    for (int i = 0; i < bins; ++i) ascending = ascending && edges[i] < edges[i + 1];
    if (!ascending) {
        *wide = true;
        if (std::is_same<E, float>::value) return histogram<double>(row, low, high, bins, wide);
        if (!std::isfinite(delta)) {
            std::vector<double> halves(row);
            for (double& x : halves) x *= 0.5;
            return histogram<double>(halves, low * 0.5, high * 0.5, bins, wide);
        }
    }
    std::vector<int32_t> counts(bins);
    for (const double value : row) {
        const E x = static_cast<E>(value), place = (x - first) / delta;
        int b = delta == 0 ? bins / 2 : std::min(static_cast<int>(place * static_cast<E>(bins)), bins - 1);
        if (ascending) {
            if (x < edges[b]) --b;
            if (x >= edges[b + 1] && b < bins - 1) ++b;
        }
        ++counts[b];
    }
    return counts;
}

// The four distances of two histograms, over own ranges or, where width >= 0, over the joint range.
inline void distances(std::vector<int32_t> a, std::vector<int32_t> b, double m, double width, double* out) {
    const int bins = static_cast<int>(a.size());
    double js = 0, roots = 0, kl = 0, moved = 0, gap = 0;
    for (int i = 0; i < bins; ++i) {
        const double p = a[i] / m, q = b[i] / m, middle = (p + q) / 2;
        if (p > 0) js += p * std::log(p / middle) / 2;
        if (q > 0) js += q * std::log(q / middle) / 2;
        roots += std::sqrt(p * q);
        if (p > 0 && q > 0) kl += p * std::log(p / q);
        gap += a[i] - b[i];
        moved += std::fabs(gap) / m;
    }
    std::sort(a.begin(), a.end());
    std::sort(b.begin(), b.end());
    double apart = 0;
    for (int i = 0; i < bins; ++i) apart += std::abs(a[i] - b[i]) / m;
    out[0] = width >= 0 ? moved * width : apart / bins;
    out[1] = js;
    out[2] = 1 - roots;
    out[3] = kl;
}

// Rows of many kinds; quarters of small numbers, which every dtype and every mean over 4 positions holds
// exactly, except for the kinds that only wide floats can hold.
inline double draw(const Case& c, int64_t row, Random& random) {
    const bool single = c.dtype == DType::float32 && c.positions == 1;
    const bool wide = single || (c.dtype == DType::float64 && c.positions == 1);
    const double quarter = static_cast<double>(random.below(201) - 100) / 4;
    const double fraction = static_cast<double>(random.below(1 << 23)) * 0x1p-23;
    switch (row % 11) {
        case 0: return quarter < 0 ? 0 : quarter;
        case 1: return 1.25;
        case 2: return wide ? fraction : quarter;
        case 3: return wide ? 1 + static_cast<double>(random.below(60)) * 0x1p-23 : quarter;
        case 4: return wide ? static_cast<double>(random.below(90)) * 0x1p-149 : quarter;
        case 5: return wide ? (random.below(2) ? 3e38 : -3e38) : quarter;
        case 6: return wide ? 1e6 + 4 * fraction : quarter;
        case 7: return single || !wide ? quarter : random.below(2) ? 1.5e308 * fraction : -1.5e308;
        case 8: return wide ? 3e9 : quarter;
        default: return quarter;
    }
}

inline double rounded(DType dtype, double value) {
    return dtype == DType::float64 ? value : static_cast<float>(value);
}

inline bool close(double found, double right, double scale = 1) {
    if (std::isnan(right)) return std::isnan(found);
    return std::fabs(found - right) <= 1e-12 * scale + 1e-10 * std::fabs(right);
}

inline void measure(const Case& c) {
    const std::string where = "dtype " + std::to_string(static_cast<int>(c.dtype)) + ", n " +
                              std::to_string(c.n) + ", channels " + std::to_string(c.channels) +
                              ", positions " + std::to_string(c.positions) + ", first bins " +
                              std::to_string(c.bins[0]);
    const int64_t n = c.n, m = c.channels, bin_counts = static_cast<int64_t>(c.bins.size());
    const int64_t size = c.dtype == DType::float64 ? 8 : c.dtype == DType::float32 ? 4 : 2;
    const int64_t row = m * c.positions, stride_c = c.channels_last || c.positions == 1 ? 1 : c.positions;
    const int64_t stride_p = c.channels_last ? m : 1;
    const int sides = c.shared ? 4 : 2, columns = c.shared ? 8 : 4;
    int64_t all_bins = 0;
    for (const int32_t b : c.bins) all_bins += b;

    Random random;
    Buffer<char> memory[2] = {Buffer<char>((n * row + c.shift) * size),
                              Buffer<char>((n * row + c.shift) * size)};
    std::vector<std::vector<double>> x[2];
    Buffer<int64_t> status[2] = {Buffer<int64_t>(kStatusWords), Buffer<int64_t>(kStatusWords)};
    int64_t faults[2] = {}, from_end[2] = {};
    std::vector<char> finite(n, 1);
    Features features[2];
    for (int side = 0; side < 2; ++side) {
        char* const start = memory[side].get() + c.shift * size;
        features[side] = {start, c.dtype, n, m, c.positions, row, stride_c, stride_p};
        for (int s = 0; s < kStatusWords; ++s) status[side][s] = 0;
        for (int64_t i = 0; i < n; ++i) {
            std::vector<double> mean(m);
            for (int64_t k = 0; k < m; ++k) {
                for (int64_t p = 0; p < c.positions; ++p) {
                    const bool bad = i % 7 == 4 + side && k == m / 2 && p == 0;
                    const double value =
                        bad ? (side ? NAN : -INFINITY) : rounded(c.dtype, draw(c, i + 3 * side, random));
                    store(start + (i * row + k * stride_c + p * stride_p) * size, c.dtype, value);
                    mean[k] += value / static_cast<double>(c.positions);
                    if (!bad) continue;
                    if (faults[side]++ == 0) from_end[side] = n * m - (i * m + k);
                    finite[i] = 0;
                }
            }
            x[side].push_back(mean);
        }
    }

    Buffer<double> sums(bin_counts * columns), rows(n * bin_counts * columns);
    Buffer<int32_t> counts(n * sides * all_bins);
    Buffer<int64_t> float64_edges(bin_counts), left_out(1);
    Buffer<char> workspace(cuda::row_distances_workspace(features[0], bin_counts, all_bins, c.shared));
    cuda::row_distances({features[0], features[1], c.bins.data(), bin_counts, c.shared, c.skip, sums.get(),
                         rows.get(), counts.get(), float64_edges.get(), status[0].get(), status[1].get(),
                         left_out.get(), workspace.get()},
                        0, nullptr);

    int64_t offset = 0, left = 0;
    for (int64_t k = 0; k < bin_counts; ++k) {
        const int bins = c.bins[k];
        std::vector<double> sum(columns), scale(columns);
        int64_t wides = 0;
        for (int64_t i = 0; i < n; ++i) {
            const std::string here = where + ", row " + std::to_string(i);
            std::vector<double> right(columns, std::numeric_limits<double>::quiet_NaN());
            std::vector<int32_t> h[4];
            for (auto& one : h) one.assign(bins, 0);
            if (finite[i]) {
                const auto a = std::minmax_element(x[0][i].begin(), x[0][i].end());
                const auto b = std::minmax_element(x[1][i].begin(), x[1][i].end());
                const double low[3] = {*a.first, *b.first, std::min(*a.first, *b.first)};
                const double high[3] = {*a.second, *b.second, std::max(*a.second, *b.second)};
                for (int s = 0; s < sides; ++s) {
                    const int range = std::min(s, 2);
                    bool wide = false;
                    h[s] = c.dtype == DType::float64
                               ? histogram<double>(x[s % 2][i], low[range], high[range], bins, &wide)
                               : histogram<float>(x[s % 2][i], static_cast<float>(low[range]),
                                                  static_cast<float>(high[range]), bins, &wide);
                    wides += wide;
                }
                distances(h[0], h[1], static_cast<double>(m), -1, right.data());
                const double width = high[2] / bins - low[2] / bins;
                if (c.shared) distances(h[2], h[3], static_cast<double>(m), width, right.data() + 4);
            } else {
                left += k == 0 && c.skip;
            }
            for (int s = 0; s < sides; ++s) {
                for (int b = 0; b < bins; ++b) {
                    expect(counts[(i * sides + s) * all_bins + offset + b] == h[s][b], "counts", here);
                }
            }
            for (int d = 0; d < columns; ++d) {
                expect(close(rows[(i * bin_counts + k) * columns + d], right[d]), "distances", here);
                if (finite[i] || !c.skip) {
                    sum[d] += right[d];
                    scale[d] += 1 + std::fabs(right[d]);
                }
            }
        }
        for (int d = 0; d < columns; ++d) {
            expect(close(sums[k * columns + d], sum[d], scale[d]), "sums", where);
        }
        expect(float64_edges[k] == wides, "float64_edges", where);
        offset += bins;
    }
    expect(left_out[0] == left, "left_out", where);
    for (int side = 0; side < 2; ++side) {
        expect(status[side][kNonfiniteCount] == faults[side] &&
                   status[side][kNonfiniteRows] == faults[side] &&
                   status[side][kNonfiniteFromEnd] == from_end[side],
               "status", where);
    }
}

}  // namespace
