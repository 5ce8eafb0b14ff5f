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
};

// spatial_mean: the mean over the positions of every row and channel, summed in float64.
struct SpatialMean {
    Features x;
    void* means;  // [n, channels] out: float64 where the features are, else float32
};

// lloyd_step: one iteration of Lloyd's k-means. Every row goes to the centre that is nearest in float64,
// sum over columns of (x - c)^2; equal distances go to the lowest index.
struct LloydStep {
    Features x;             // positions == 1
    const double* centers;  // [k, channels], side by side
    int64_t k;
    int64_t* labels;        // [n] out
    double* distances;      // [n] out: squared, to the centre of the row's label; or null
    double* inertia;        // [1] out: sum of the squared distances
    double* sums;           // [k, channels] out: of the rows of each label; or null, with counts
    int64_t* counts;        // [k] out
    int64_t* rechecked;     // [1] out: rows whose label the fast product left open
    int64_t* status;        // [kStatusWords] in and out
    void* workspace;        // lloyd_step_workspace() bytes
};

// row_distances: for every pair of rows and every number of bins, four distances between the rows'
// histograms, each over its own row's min..max: wasserstein_heights, jensen_shannon, bhattacharyya, kl;
// with `shared` four more over the pair's joint min..max: wasserstein, jensen_shannon, bhattacharyya, kl.
struct RowDistances {
    Features x_old, x_new;   // paired: the same dtype, n, channels and positions
    const int32_t* bins;     // [bin_counts] in host memory, each from 2 to 256
    int64_t bin_counts;
    bool shared;
    bool skip_nonfinite;     // leave pairs with a non-finite feature on either side out
    double* sums;            // [bin_counts, 4 or 8] out: over the rows
    double* rows;            // [n, bin_counts, 4 or 8] out, NaN for pairs left out; or null
    int32_t* counts;         // [n, 2 or 4, sum of bins] out: histograms old, new, shared old, shared new; or null
    int64_t* float64_edges;  // [bin_counts] out: histograms whose edges float32 could not tell apart
    int64_t* status_old;     // [kStatusWords] in and out
    int64_t* status_new;     // [kStatusWords] in and out
    int64_t* left_out;       // [1] out: pairs left out, which either side's status alone cannot tell
    void* workspace;         // row_distances_workspace() bytes
};

namespace cpu {
int64_t class_order_workspace(int64_t n, int64_t classes, int64_t blocks);
void class_order(const ClassOrder& args, int threads);

int64_t class_moments_workspace(const Features& x, int64_t groups, bool squares);
void class_moments(const ClassMoments& args, int threads);

void spatial_mean(const SpatialMean& args, int threads);

// The instruction set that the kernels run on here: "avx512", "avx2" or "baseline".
const char* instruction_set();
}  // namespace cpu

namespace cuda {
// The version of the toolkit that compiled the kernels, such as "13.0".
const char* toolkit();

int64_t class_order_workspace(int64_t n, int64_t classes, int64_t blocks);
void class_order(const ClassOrder& args, int device, void* stream);

int64_t class_moments_workspace(const Features& x, int64_t groups, bool squares);
void class_moments(const ClassMoments& args, int device, void* stream);

void spatial_mean(const SpatialMean& args, int device, void* stream);
}  // namespace cuda

}  // namespace resque
