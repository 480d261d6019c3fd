// 16 × 16 numbers turned, for the files that multiply bfloat16. Next: prompts.hpp.
#pragma once
#include <immintrin.h>

namespace tinylm {
namespace {

// Rows become columns.
void transpose(__m512i (&row)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      row[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      row[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // a quarter of row[4 i + j]: four rows of a column
    const __m512i even = _mm512_shuffle_i32x4(row[j], row[4 + j], 0x88), odd = _mm512_shuffle_i32x4(row[j], row[4 + j], 0xDD);
    const __m512i even2 = _mm512_shuffle_i32x4(row[8 + j], row[12 + j], 0x88);
    const __m512i odd2 = _mm512_shuffle_i32x4(row[8 + j], row[12 + j], 0xDD);
    t[j] = _mm512_shuffle_i32x4(even, even2, 0x88), t[8 + j] = _mm512_shuffle_i32x4(even, even2, 0xDD);
    t[4 + j] = _mm512_shuffle_i32x4(odd, odd2, 0x88), t[12 + j] = _mm512_shuffle_i32x4(odd, odd2, 0xDD);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) row[i] = t[i];
}

}  // namespace
}  // namespace tinylm
