// What this processor can do and the system lets it do, asked of the processor itself: __builtin_cpu_supports would need
// compiler-rt, which clang-cl does not link. x86-64 only. No Python here.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define TINYLM_X86 1
#include <cpuid.h>
#include <immintrin.h>

namespace tinylm {

// Whether there are 64-byte registers, comparisons of their bytes and counting of leading zeros (AVX-512 F, BW and CD), and
// what every processor with them has (BMI 1 and 2).
inline bool asks_avx512() {
    unsigned a, b, c, d, saved, upper;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;  // OSXSAVE: the system says what it saves
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned wanted = 1u << 16 | 1u << 30 | 1u << 28 | 1u << 3 | 1u << 8;
    return (saved & 0xE6) == 0xE6 && (b & wanted) == wanted;
}

inline const bool kAvx512 = asks_avx512();

}  // namespace tinylm
#endif
