// spatial_mean on the CPU: row by row, each by the inner loop that class_moments pools with.
//
// A task is a fixed number of rows, and a row's mean depends on that row alone. The mean of a row is
// made in float64, in the result itself where that is float64, else in a scratch row of its own.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/class_moments_rows.h"
#include "cpu/parallel.h"
#include "dispatch.h"
#include "validate.h"

namespace resque::cpu {
namespace {

constexpr int64_t kRows = 8;  // of a task

template <typename T>
void run(const SpatialMean& a, int threads) {
    using Mean = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const auto pool = RESQUE_PICK(pool_row<T>);
    const T* data = static_cast<const T*>(a.x.data);
    Mean* means = static_cast<Mean*>(a.means);
    const int64_t channels = a.x.channels, size = static_cast<int64_t>(sizeof(T));
    parallel_for((a.x.n + kRows - 1) / kRows, threads, a.x.n * channels * a.x.positions * size,
                 [&](int64_t task) {
        std::vector<double> scratch(std::is_same_v<Mean, double> ? 0 : channels);
        for (int64_t i = task * kRows; i < std::min((task + 1) * kRows, a.x.n); ++i) {
            Mean* const to = means + i * channels;
            if constexpr (std::is_same_v<Mean, double>) {
                pool(a.x, data + i * a.x.stride_n, to);
            } else {
                pool(a.x, data + i * a.x.stride_n, scratch.data());
                std::copy(scratch.begin(), scratch.end(), to);
            }
        }
    });
}

}  // namespace

void spatial_mean(const SpatialMean& a, int threads) {
    validate(a);
    dispatch<Half, BFloat>(a.x.dtype, [&](auto type) { run<typename decltype(type)::type>(a, threads); });
}

}  // namespace resque::cpu
