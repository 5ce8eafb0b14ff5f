#include "cpu/isa.h"

#include <stdexcept>
#include <string>

namespace resque::cpu {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512icl"};

Isa best_of_this_processor() {
#if defined(__x86_64__) && !defined(RESQUE_BASELINE_ONLY)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::baseline;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!avx512) return Isa::avx2;
    return __builtin_cpu_supports("avx512vpopcntdq") ? Isa::avx512icl : Isa::avx512;
#else
    return Isa::baseline;
#endif
}

Isa& chosen() {
    static Isa set = best_of_this_processor();
    return set;
}

}  // namespace

Isa isa() { return chosen(); }

const char* instruction_set() { return kNames[static_cast<int>(isa())]; }

void choose_instruction_set(const char* asked) {
    const Isa best = best_of_this_processor();
    const std::string name = asked;
    if (name.empty()) {
        chosen() = best;
        return;
    }
    std::string known;
    for (int i = 0; i <= static_cast<int>(best); ++i) {
        if (name == kNames[i]) {
            chosen() = static_cast<Isa>(i);
            return;
        }
        known += (i ? ", " : "") + std::string(kNames[i]);
    }
    throw std::invalid_argument("RESQUE_ISA: expected an instruction set that this processor has (" +
                                known + "), found '" + name + "'; unset it, or set it to one of these");
}

}  // namespace resque::cpu
