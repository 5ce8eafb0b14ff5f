// The inner loops of row_distances, for each instruction set.
#pragma once

#include <type_traits>

#include "cpu/isa.h"

namespace resque::cpu {

// What stands in memory as T is binned as: float32, but float64 as it is.
template <typename T>
using Binned = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Histograms lie bin by bin, a line of the cache each, so that a line holds that bin of 32 rows, or of
// 16 whose counts may pass 65,535.
constexpr int kLine = 64;
template <typename Count>
constexpr int kLanes = kLine / static_cast<int>(sizeof(Count));

constexpr int kStreams = 8;  // rows that are binned together

// A row on its way into a lane of a histogram: that of its number among eight.
template <typename T>
struct Stream {
    const T* row;           // null for none
    Binned<T> first, step;  // of the bins' edges
    Binned<T> scale;        // about 1 / step
    const T* next;  // the row that will be read after all of these, null for none
};

// What is needed of a count c, side by side: a pair of counts meets in one product of four lanes.
//   old: sqrt(c), c log c, c, c log c     new: sqrt(c), c > 0, log c, 1
struct CountTerms {
    double as_old[4], as_new[4];
};

struct CountTables {
    const CountTerms* terms;  // [limit + 1]
    const double* xlogx;      // [2 * limit + 1]: c log c
    int64_t limit;
};

// Sums over the bins of two histograms a and b of m values.
struct CountSums {
    double roots;    // sqrt(a b)
    double kl;       // a log(a / b) where both are positive
    double entropy;  // a log a + b log b - (a + b) log(a + b)
};

#define RESQUE_DECLARE(set)                                                                            \
    namespace set {                                                                                    \
    /* Least and greatest of a row, and whether all of it is finite. */                                \
    template <typename T>                                                                              \
    bool row_range(const T* row, int64_t m, Binned<T>* least, Binned<T>* most);                        \
    template <typename T>                                                                              \
    void widen_row(const T* row, int64_t length, Binned<T>* to);                                       \
    /* Adds `length` values of each row to eight lanes of histograms [bins + 1, 32], whose last line */  \
    /* is for no use, and fetches as much of the next rows. */                                          \
    template <typename T>                                                                              \
    void bin_rows(const Stream<T> (&streams)[kStreams], int64_t length, int bins,                      \
                  uint16_t* histograms);                                                               \
    /* To every lane whose mask is zero: each bin the sum of `ratio` of the finer ones. */             \
    template <typename Count>                                                                          \
    void fold(const Count* finer, int ratio, int bins, const Count* mask, Count* to);                  \
    /* The sum over bins of the differences of the sorted counts, or of the cumulative ones. */        \
    template <typename Count>                                                                          \
    void sorted_apart(const Count* a, const Count* b, int bins, Count* scratch, int64_t* apart);       \
    template <typename Count>                                                                          \
    void cumulative_apart(const Count* a, const Count* b, int bins, int64_t* apart);                   \
    /* Of every lane: the greatest count of either, and zero in `differ` where they are equal. */      \
    template <typename Count>                                                                          \
    void compare_lanes(const Count* a, const Count* b, int bins, Count* most, Count* differ);          \
    /* Of one lane, whose pointers these are, and whose counts are at most the tables' limit ... */    \
    template <typename Count>                                                                          \
    void count_sums(const Count* a, const Count* b, int bins, const CountTables& tables,               \
                    CountSums* sums);                                                                  \
    /* ... or are not: the same bits for the same counts. */                                           \
    template <typename Count>                                                                          \
    void count_sums_beyond(const Count* a, const Count* b, int bins, const CountTables& tables,        \
                           CountSums* sums);                                                           \
    }
RESQUE_FOR_EACH_ISA(RESQUE_DECLARE)
#undef RESQUE_DECLARE

// The entries of the tables, made anew for counts beyond their limit: the same bits.
CountTerms count_terms(double c);
double xlogx(double c);

}  // namespace resque::cpu
