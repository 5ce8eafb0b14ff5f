// Every op of the package, once for the CPU and once for CUDA.
//
// Plain pointers, int64 sizes, strides in elements: nothing here knows of torch or of Python. Outputs
// and workspaces belong to the caller, and every launcher keeps one contract:
// validate -> guard the device -> the caller's stream -> dispatch -> launch -> check the launch.
// A CUDA launcher neither allocates nor synchronises.
#pragma once

#include <cstdint>

namespace resque {

enum class DType : int32_t { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3 };

// What an op found wrong in its input, as int64 words that start at zero. The two "from the end"
// words hold (size - position), so that the first fault is the largest value and zero means none.
enum Status : int {
    kBadLabelFromEnd = 0,   // n - position of the first label outside 0..classes-1
    kBadLabel = 1,          // that label
    kNonfiniteCount = 2,    // pooled values that are NaN or infinite
    kNonfiniteFromEnd = 3,  // n * channels - flat index [row, channel] of the first of them
    kNonfiniteRows = 4,     // rows that hold one
    kStatusWords = 5,
};

// A batch of activations read as [n, channels, positions]; the mean over positions is the feature.
// Either positions == 1 and stride_c == 1, or one of stride_c and stride_p is 1.
struct Features {
    const void* data;
    DType dtype;
    int64_t n, channels, positions;
    int64_t stride_n, stride_c, stride_p;
};

// class_order: rows grouped by class, and within a class dealt in turn to `blocks` blocks.
// The j-th row of class c goes to block (seen[c] + j) % blocks; group = c * blocks + block. Rows of a
// group stay in ascending order. Rows with a label outside 0..classes-1 are in no group.
struct ClassOrder {
    const void* labels;   // [n] int32 or int64
    bool labels_int64;
    int64_t label_stride;
    int64_t n;            // < 2^31
    int64_t classes;
    int64_t blocks;
    const int64_t* seen;  // [classes] rows of each class before this call, or null
    int32_t* order;       // [n] out: rows, group after group
    int64_t* offsets;     // [classes * blocks + 1] out: where each group starts in `order`
    int64_t* status;      // [kStatusWords] in and out
    void* workspace;      // class_order_workspace() bytes
};

// class_moments: count, sum and sum of squares of the features of every group.
struct ClassMoments {
    Features x;
    const int32_t* order;    // [n] from class_order
    const int64_t* offsets;  // [groups + 1] from class_order
    int64_t groups;
    bool squares;
    bool skip_nonfinite;     // leave rows with a non-finite feature out of all three results
    int64_t* counts;         // [groups] out
    double* sums;            // [groups, channels] out
    double* sumsq;           // [groups, channels] out, unused without squares
    int64_t* status;         // [kStatusWords] in and out
    void* workspace;         // class_moments_workspace() bytes
    bool zeroed = false;     // on the CPU: sums and sumsq are zero, and stay untouched without rows
};

// labelled_moments, on the CPU alone: class_order, then class_moments of its groups, in one call that
// finds its own workspace. With `seen` the moments are added to what is there, all of them or, where
// the status tells of a fault, none.
struct LabelledMoments {
    Features x;
    const void* labels;  // [n] int32 or int64
    bool labels_int64;
    int64_t label_stride;
    int64_t classes, blocks;  // groups = classes * blocks, as class_order deals rows to them
    bool squares;
    bool skip_nonfinite;  // as class_moments does; else such rows are a fault
    bool zeroed;          // as in class_moments
    int64_t* seen;        // [classes] in and out: rows of each class so far, or null
    int64_t* counts;      // [groups]
    double* sums;         // [groups, channels]
    double* sumsq;        // [groups, channels], unused without squares
    int64_t* status;      // [kStatusWords] out
};

// pair_counts: how many rows carry each pair of labels. A row with a label outside 0..count-1 on either
// side is in no cell.
struct PairCounts {
    const void *labels_a, *labels_b;  // [n] int32 or int64 each
    bool int64_a, int64_b;
    int64_t stride_a, stride_b;
    int64_t n;                     // < 2^31
    int64_t count_a, count_b;
    int64_t* table;                // [count_a, count_b] in and out: these rows are added
    int64_t *status_a, *status_b;  // [kStatusWords] in and out
    void* workspace;               // pair_counts_workspace() bytes
};

// spatial_mean: the mean over the positions of every row and channel, summed in float64.
struct SpatialMean {
    Features x;
    void* means;  // [n, channels] out: float64 where the features are, else float32
};

// value_histogram: how many values lie in each bin. A bin is one pattern of the top `bits` bits of a
// value; float64 is first cut to float32, toward zero, and counts as infinite from 2^128 on. The bins
// stand in the order of the values: patterns with the sign from the last to the first, then the others.
// NaN and infinity are counted in no bin, but in the status, there with the position as the flat index
// [row, channel, position] from the end, and without rows.
struct ValueHistogram {
    Features x;        // any with by_channel; else one row, n == 1 and positions == 1
    bool by_channel;   // a histogram a channel, else one for all values
    int64_t bits;      // sign and exponent at least, 20 or the width of the type at most
    int64_t* counts;   // [1 or channels, 2^bits] in and out: added to
    int64_t* status;   // [kStatusWords] in and out
    void* workspace;   // value_histogram_workspace() bytes
};

// lloyd_step: one iteration of Lloyd's k-means. Every row goes to the centre at the least distance, the
// first of those where several are. A distance is the sum over columns of (x - c)^2 in float64, every
// difference, square and sum rounded (no fused multiply-add) and added in NumPy's pairwise order, so
// that labels are the same everywhere, whatever the tie:
//   fewer than 8 terms: one after another;
//   up to 128: eight sums, of every eighth term, as ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)), then
//   the terms behind the last whole eight one after another;
//   more: the sum of the first half plus that of the rest; half is n / 2 rounded down to whole eights.
// A row with a non-finite feature gets label 0, and the other results what follows from its values.
struct LloydStep {
    Features x;             // positions == 1
    const double* centers;  // [k, channels], side by side
    int64_t k;
    int64_t* labels;        // [n] out
    double* distances;      // [n] out: squared, to the centre of the row's label, in any order; or null
    double* inertia;        // [1] out: sum of the squared distances
    double* sums;           // [k, channels] out: of the rows of each label; unused without counts
    int64_t* counts;        // [k] out, or null
    int64_t* rechecked;     // [1] out: rows whose label the fast product left open
    int64_t* status;        // [kStatusWords] in and out
    void* workspace;        // lloyd_step_workspace() bytes
};

// row_distances: for every pair of rows and every number of bins, four distances between the rows'
// histograms, each over its own row's min..max: wasserstein_heights, jensen_shannon, bhattacharyya, kl;
// with `shared` four more over the pair's joint min..max: wasserstein, jensen_shannon, bhattacharyya, kl.
//
// A histogram is numpy 2's. In the row's precision (float32 for 16-bit floats and their means), every
// operation rounded by itself: first = min and last = max, of a constant row -+ 0.5; delta = last -
// first; edge i = first + i * (delta / bins), edge `bins` = last. A value goes to the bin
// b = trunc(((x - first) / delta) * bins), `bins` - 1 at most; one less if x < edge b; then one more if
// x >= edge b + 1 and b < bins - 1.
// numpy refuses ranges whose edges do not ascend strictly, and its arithmetic fails where delta
// overflows. Such histograms are counted in `float64_edges`, and then
//   float32 rows are binned as if they had come as float64;
//   float64 rows are binned by their halves, first and last too, where delta overflows;
//   where float64 edges do not ascend either, b is as above but compared with no edge, and bins / 2
//   where last == first even so.
// kl counts bins where both heights are positive; the width of a bin, for `wasserstein`, is
// (last - first) / bins in float64.
struct RowDistances {
    Features x_old, x_new;   // paired: the same dtype, n, channels (1 <= channels < 2^31) and positions
    const int32_t* bins;     // [bin_counts] in host memory, each from 2 to 256
    int64_t bin_counts;      // at most kMaxBinCounts
    bool shared;
    bool skip_nonfinite;     // leave pairs with a non-finite feature on either side out; else they are NaN
    double* sums;            // [bin_counts, 4 or 8] out: over the rows
    double* rows;            // [n, bin_counts, 4 or 8] out, NaN for non-finite pairs; or null
    int32_t* counts;         // [n, 2 or 4, sum of bins] out: histograms old, new, shared old, shared new,
                             // zero for non-finite pairs; or null
    int64_t* float64_edges;  // [bin_counts] out: histograms that float32 (float64) edges cannot make
    int64_t* status_old;     // [kStatusWords] in and out
    int64_t* status_new;     // [kStatusWords] in and out
    int64_t* left_out;       // [1] out: pairs left out, which either side's status alone cannot tell
    void* workspace;         // row_distances_workspace() bytes
};
constexpr int64_t kMaxBinCounts = 64;

namespace cpu {
int64_t class_order_workspace(int64_t n, int64_t classes, int64_t blocks);
void class_order(const ClassOrder& args, int threads);

int64_t class_moments_workspace(const Features& x, int64_t groups, bool squares);
void class_moments(const ClassMoments& args, int threads);

void labelled_moments(const LabelledMoments& args, int threads);

int64_t pair_counts_workspace(int64_t n, int64_t count_a, int64_t count_b);
void pair_counts(const PairCounts& args, int threads);

int64_t lloyd_step_workspace(const Features& x, int64_t k, bool update);
void lloyd_step(const LloydStep& args, int threads);

void spatial_mean(const SpatialMean& args, int threads);

// `all_bins` is the sum of the numbers of bins; either side's features will do.
int64_t row_distances_workspace(const Features& x, int64_t bin_counts, int64_t all_bins, bool shared);
void row_distances(const RowDistances& args, int threads);

int64_t value_histogram_workspace(const Features& x, bool by_channel, int64_t bits);
void value_histogram(const ValueHistogram& args, int threads);

// The instruction set that the kernels run on: the best of this processor's, or what was chosen.
// "baseline", "avx2", "avx512", or "avx512icl", which is AVX-512 as of Ice Lake and Zen 4.
const char* instruction_set();

// "" for the best; not while an op runs. Throws std::invalid_argument.
void choose_instruction_set(const char* name);
}  // namespace cpu

namespace cuda {
// The version of the toolkit that compiled the kernels, such as "13.0".
const char* toolkit();

int64_t class_order_workspace(int64_t n, int64_t classes, int64_t blocks);
void class_order(const ClassOrder& args, int device, void* stream);

int64_t class_moments_workspace(const Features& x, int64_t groups, bool squares);
void class_moments(const ClassMoments& args, int device, void* stream);

int64_t pair_counts_workspace(int64_t n, int64_t count_a, int64_t count_b);
void pair_counts(const PairCounts& args, int device, void* stream);

int64_t lloyd_step_workspace(const Features& x, int64_t k, bool update);
void lloyd_step(const LloydStep& args, int device, void* stream);

void spatial_mean(const SpatialMean& args, int device, void* stream);

int64_t row_distances_workspace(const Features& x, int64_t bin_counts, int64_t all_bins, bool shared);
void row_distances(const RowDistances& args, int device, void* stream);

int64_t value_histogram_workspace(const Features& x, bool by_channel, int64_t bits);
void value_histogram(const ValueHistogram& args, int device, void* stream);
}  // namespace cuda

}  // namespace resque
