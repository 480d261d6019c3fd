// The kernels for AVX-512 with VNNI (Cascade Lake, Zen 4 and later): 16 outputs are one vector, and one instruction
// multiplies 64 pairs of bytes and adds them up by fours.
#include "packed.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#include <immintrin.h>

namespace tinylm {
namespace {

constexpr int kRows = 4, kTokens = 6, kRowsGrouped = 2, kTokensGrouped = 4;  // 32 registers
constexpr int kPlainRows = 4;
constexpr bool kOneLoad = true;

using Ints = __m512i;
using Floats = __m512;

Ints zero_ints() { return _mm512_setzero_si512(); }
Floats zero_floats() { return _mm512_setzero_ps(); }
Floats to_float(Ints a) { return _mm512_cvtepi32_ps(a); }
Floats set(float x) { return _mm512_set1_ps(x); }
Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
void store(float* to, Floats a) { _mm512_storeu_ps(to, a); }
Floats load(const float* from) { return _mm512_loadu_ps(from); }
Floats load_bfloat16(const uint8_t* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
float sum(Floats a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a),
                                     _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
Floats half(const uint8_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }

__m512i four(const int8_t* x) {
  int32_t together;
  __builtin_memcpy(&together, x, 4);
  return _mm512_set1_epi32(together);
}

template <int Bits>
struct Weights {  // unsigned: the instruction multiplies an unsigned byte with a signed one
  __m512i first, second;
  explicit Weights(const uint8_t* from) : first(_mm512_loadu_si512(from)), second() {
    if constexpr (Bits == 4) {
      second = _mm512_and_si512(_mm512_srli_epi16(first, 4), _mm512_set1_epi8(15));
      first = _mm512_and_si512(first, _mm512_set1_epi8(15));
    }
  }
  void dot(Ints& sum, const int8_t* x) const {
    sum = _mm512_dpbusd_epi32(sum, first, four(x));
    if constexpr (Bits == 4) sum = _mm512_dpbusd_epi32(sum, second, four(x + 4));
  }
  static Ints finish(Ints sum, int32_t activations, int32_t zero_point) {
    const int32_t zero = Bits == 8 ? 128 : zero_point;
    return _mm512_sub_epi32(sum, _mm512_set1_epi32(zero * activations));
  }
};

#include "kernels.inc"
#include "elementwise.inc"

const Kernels kTable{"avx512", quantize, nullptr, linear, norm, rotate,
                     attend<float>, attend<uint16_t>, activate, round_bfloat16, gelu_bfloat16};

}  // namespace

const Kernels* const kAvx512 = &kTable;

}  // namespace tinylm
#else
namespace tinylm {
const Kernels* const kAvx512 = nullptr;
}
#endif
