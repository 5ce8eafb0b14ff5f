// lloyd_step on CUDA: the workspace, and the parts of the launch that are compiled once or once a type.
#pragma once

#include "cuda/class_moments.cuh"
#include "cuda/lloyd_step_bounds.cuh"
#include "cuda/lloyd_step_few.cuh"
#include "cuda/lloyd_step_many.cuh"

namespace resque::cuda {

// The whole op for features of T: lloyd_step_launch.cuh, compiled by itself for each type, as it takes
// ptxas seconds: lloyd_step_float32.cu and the like.
template <typename T>
void launch_lloyd(const LloydStep& a, int device, cudaStream_t stream);

// From here on what does not depend on the type: lloyd_step.cu.
//
// The frame's powers of two, and the centres as the products need them; `mean` is there, the largest
// values are in `frame`. `rechecked` and `counts`, [k] or null, become zero.
void launch_split(const double* centers, int64_t k, int64_t width, int64_t padded, const float* mean,
                  Frame* frame, Bound* bounds, __half* panels, float* shift, int64_t* rechecked,
                  int64_t* counts, cudaStream_t stream);
// The sum of `count` numbers; `between` has room for kMostAdders.
void launch_add(const double* parts, int64_t count, double* between, double* sum, cudaStream_t stream);
// `sums`, [size], of [windows, size].
void launch_add_windows(const double* slots, int64_t windows, int64_t size, double* sums, cudaStream_t stream);

namespace {

inline int64_t aligned(int64_t bytes) { return ceil_div(bytes, 256) * 256; }

constexpr int kNarrow = 128, kWide = 256;  // centres of a tile of the product
constexpr int64_t kMostAdders = 256;       // blocks of launch_add

// Which tiles there are, and in how many shares blocks side by side take them.
struct Tiles {
    int64_t size, padded, splits;

    Tiles(const Features& x, int64_t k) {
        size = k > kNarrow ? kWide : kNarrow;
        padded = ceil_div(k, size) * size;
        // A tile of rows that all resident blocks hold, 2 * 132 of 128, stays in the L2 from one tile of
        // centres to the next if its rows have up to 1 KB. Wider rows are read by blocks side by side
        // instead, whose 24 bytes a row are then few beside the row.
        const int64_t bytes = x.channels * (x.dtype == DType::float64 ? 8 : x.dtype == DType::float32 ? 4 : 2);
        splits = bytes > 1024 ? min(padded / size, int64_t{4}) : 1;
    }
};

// The workspace. What labels need and what sums need is never there at the same time.
struct Layout {
    int64_t counters, mean, shift, bounds, panels, between, spreads, shared, bytes;
    int64_t nearest, listed, left;          // for labels of many
    int64_t order, offsets, status, space;  // for sums of many
    int64_t slots;                          // for both of few

    Layout(const Features& x, int64_t k, bool update) {
        const int64_t columns = ceil_div(x.channels, kChunk) * kChunk;
        const Tiles tiles(x, k);
        const Windows windows(x.n);
        int64_t end = 0;
        const auto take = [&end](int64_t size) {
            const int64_t at = end;
            end += aligned(size);
            return at;
        };
        counters = take(2 * sizeof(int64_t) + sizeof(Frame));
        mean = take(columns * 4);
        shift = take(columns * 4);
        bounds = take(tiles.padded * static_cast<int64_t>(sizeof(Bound)));
        panels = take(2 * tiles.padded * columns * 2);
        between = take(kMostAdders * 8);
        spreads = take(max(max(spread_parts(x), ceil_div(x.n, kMeasuredRows)), windows.count) * 8);
        shared = end;
        nearest = take(tiles.splits * x.n * static_cast<int64_t>(sizeof(Nearest)));
        listed = take(x.n * 4);
        left = take(x.n * 4);
        bytes = end;
        if (!update) return;
        end = shared;
        order = take(x.n * 4);
        offsets = take((k + 1) * 8);
        status = take(kStatusWords * 8);
        space = take(max(class_order_workspace(x.n, k, 1), class_moments_workspace(x, k, false)));
        bytes = max(bytes, end);
        end = shared;
        slots = take(k <= kFewCenters ? windows.count * k * x.channels * 8 : 0);
        bytes = max(bytes, end);
    }
};

}  // namespace
}  // namespace resque::cuda
