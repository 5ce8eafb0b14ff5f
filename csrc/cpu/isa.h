// Inner loops for several instruction sets, and the choice at run time.
//
// A file of cpu/isa/ is compiled once for each set, with RESQUE_ISA its name and the compiler flags that
// setup.py gives it; everything else is compiled for the baseline, so one wheel serves every machine.
// Whole files, because vector types are lowered and templates instantiated under a file's own flags,
// whatever attributes or pragmas say. Such a file uses no inline function of the standard library: one
// compiled here for AVX-512 could become the only copy that the linker keeps.
#pragma once

#include <cstdint>

#include "resque.h"

#if defined(__x86_64__) && !defined(RESQUE_BASELINE_ONLY)
#define RESQUE_FOR_EACH_ISA(declare) \
    declare(baseline) declare(avx2) declare(avx512) declare(avx512icl)
#define RESQUE_PICK(...)                         \
    (isa() >= Isa::avx512 ? avx512::__VA_ARGS__  \
     : isa() == Isa::avx2 ? avx2::__VA_ARGS__    \
                          : baseline::__VA_ARGS__)
// For row_distances_rows.cpp, which alone is compiled for AVX-512 as of Ice Lake too.
#define RESQUE_PICK_ICL(...) \
    (isa() == Isa::avx512icl ? avx512icl::__VA_ARGS__ : RESQUE_PICK(__VA_ARGS__))
#else
#define RESQUE_FOR_EACH_ISA(declare) declare(baseline)
#define RESQUE_PICK(...) (baseline::__VA_ARGS__)
#define RESQUE_PICK_ICL RESQUE_PICK
#endif

namespace resque::cpu {

enum class Isa { baseline, avx2, avx512, avx512icl };  // each has all of those before it
Isa isa();

struct Half {
    uint16_t bits;
};
struct BFloat {
    uint16_t bits;
};

}  // namespace resque::cpu
