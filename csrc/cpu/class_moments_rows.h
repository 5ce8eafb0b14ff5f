// The inner loops of class_moments, for each instruction set.
#pragma once

#include "cpu/isa.h"

namespace resque::cpu {

#define RESQUE_DECLARE(set)                                                                       \
    namespace set {                                                                               \
    /* sum[c] += row[0][c] + ..., and so the squares, over the rows; `fresh`: sum[c] = ... Meanwhile   \
       it prefetches as many rows that come soon, and as many that come later; null for none. */    \
    template <typename T, bool Squares>                                                           \
    void add_rows(const T* const* row, int rows, const T* const* soon, const T* const* later,      \
                  int64_t width, bool fresh, double* sum, double* sumsq);                          \
    /* The mean over the positions of one row, in float64: mean [channels]. */                    \
    template <typename T>                                                                         \
    void pool_row(const Features& x, const T* row, double* mean);                                 \
    /* out[c] = slot[0][c] + slot[1][c] + ..., each column with Neumaier's compensation, so that the \
       number of slots costs no accuracy. */                                                      \
    void add_slots(const double* const* slot, int64_t slots, int64_t width, double* out);          \
    bool all_finite(const double* values, int64_t count);                                         \
    }
RESQUE_FOR_EACH_ISA(RESQUE_DECLARE)
#undef RESQUE_DECLARE

}  // namespace resque::cpu
