// The kernels for AVX2 with F16C (every x86-64 server since 2013): 16 outputs are two vectors of 8.
#include "packed.hpp"

#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>

namespace tinylm {
namespace {

constexpr int kRows = 1, kTokens = 4, kRowsGrouped = 1, kTokensGrouped = 2;  // 16 registers
constexpr int kPlainRows = 1;
constexpr bool kOneLoad = false;

struct Ints { __m256i low, high; };
struct Floats { __m256 low, high; };

Ints zero_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
Floats zero_floats() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
Floats to_float(const Ints& a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
Floats set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
Floats add(const Floats& a, const Floats& b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
Floats mul(const Floats& a, const Floats& b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
void store(float* to, const Floats& a) {
  _mm256_storeu_ps(to, a.low);
  _mm256_storeu_ps(to + 8, a.high);
}
Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
Floats load_bfloat16(const uint8_t* from) {
  const auto eight = [](const uint8_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  };
  return {eight(from), eight(from + 16)};
}
float sum(const Floats& a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
Floats half(const uint8_t* from) {
  const auto* halves = reinterpret_cast<const __m128i*>(from);
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }

__m256i four(const int8_t* x) {
  int32_t together;
  __builtin_memcpy(&together, x, 4);
  return _mm256_set1_epi32(together);
}

// sum += Σ over 4 neighbours of a · b, a unsigned, b signed. The instruction adds two products in 16 bits and would
// cut them off above 32,767, so |a b| must stay at 128 · 127 or below.
void multiply_add(__m256i& sum, __m256i a, __m256i b) {
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}

template <int Bits>
struct Weights {
  __m256i low, high;
  explicit Weights(const uint8_t* from)
      : low(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))),
        high(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32))) {
    if constexpr (Bits == 8) {  // q, signed
      low = _mm256_xor_si256(low, _mm256_set1_epi8(-128));
      high = _mm256_xor_si256(high, _mm256_set1_epi8(-128));
    }
  }
  void dot(Ints& sum, const int8_t* x) const {
    const __m256i first = four(x);
    if constexpr (Bits == 8) {  // |x| · (q with x's sign): so that the unsigned one is at most 127
      const __m256i size = _mm256_abs_epi8(first);
      multiply_add(sum.low, size, _mm256_sign_epi8(low, first));
      multiply_add(sum.high, size, _mm256_sign_epi8(high, first));
    } else {
      const __m256i second = four(x + 4), mask = _mm256_set1_epi8(15);
      multiply_add(sum.low, _mm256_and_si256(low, mask), first);
      multiply_add(sum.high, _mm256_and_si256(high, mask), first);
      multiply_add(sum.low, _mm256_and_si256(_mm256_srli_epi16(low, 4), mask), second);
      multiply_add(sum.high, _mm256_and_si256(_mm256_srli_epi16(high, 4), mask), second);
    }
  }
  static Ints finish(Ints sum, int32_t activations, int32_t zero_point) {
    const __m256i less = _mm256_set1_epi32(zero_point * activations);
    return {_mm256_sub_epi32(sum.low, less), _mm256_sub_epi32(sum.high, less)};
  }
};

#include "kernels.inc"
#include "elementwise.inc"

const Kernels kTable{"avx2", quantize, nullptr, linear, norm, rotate,
                     attend<float>, attend<uint16_t>, activate, round_bfloat16, gelu_bfloat16};

}  // namespace

const Kernels* const kAvx2 = &kTable;

}  // namespace tinylm
#else
namespace tinylm {
const Kernels* const kAvx2 = nullptr;
}
#endif
