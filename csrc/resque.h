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

namespace cpu {
int64_t class_order_workspace(int64_t n, int64_t classes, int64_t blocks);
void class_order(const ClassOrder& args, int threads);

int64_t class_moments_workspace(const Features& x, int64_t groups, bool squares);
void class_moments(const ClassMoments& args, int threads);

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
}  // namespace cuda

}  // namespace resque
