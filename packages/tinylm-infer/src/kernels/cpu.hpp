// What this processor can do and the system lets it do, asked of the processor itself: __builtin_cpu_supports would need
// compiler-rt, which clang-cl does not link. x86-64 only. Next: module.cpp.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

namespace tinylm {

struct Cpu {
  bool amd = false;
  bool avx2 = false, avx512 = false, avx512_bf16 = false;  // avx2: with F16C; avx512: F, BW and VNNI

  Cpu() {
    unsigned a, b, c, d;
    amd = __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return;  // OSXSAVE: the system says what it saves
    const bool f16c = c >> 29 & 1;
    unsigned saved, upper;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = (saved & 0x06) == 0x06 && f16c && b >> 5 & 1;
    avx512 = (saved & 0xE6) == 0xE6 && b >> 16 & 1 && b >> 30 & 1 && c >> 11 & 1;
    avx512_bf16 = avx512 && a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 5 & 1;
  }
};

}  // namespace tinylm
#endif
