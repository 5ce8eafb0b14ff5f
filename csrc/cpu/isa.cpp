#include "cpu/isa.h"

namespace resque::cpu {

Isa isa() {
#if defined(__x86_64__) && !defined(RESQUE_BASELINE_ONLY)
    static const Isa found = [] {
        __builtin_cpu_init();
        const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        return avx2 && avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::baseline;
    }();
    return found;
#else
    return Isa::baseline;
#endif
}

const char* instruction_set() {
    switch (isa()) {
        case Isa::avx512: return "avx512";
        case Isa::avx2: return "avx2";
        case Isa::baseline: break;
    }
    return "baseline";
}

}  // namespace resque::cpu
