// bfloat16 matrices on AVX-512's product of pairs of bfloat16 (Cooper Lake, Zen 4 and later), which does twice the work of
// a product of floats and takes the weights as they lie in memory. Everything else is AVX-512's.
//
// It multiplies bfloat16 only, so an activation of 24 bits becomes two of 8 bits each, x ≈ high + low with a relative
// error below 2^-17. Some rows and some tokens are worked on at once, so that what was loaded is used several times; each
// has one vector of 16 sums, always added up in the same order: a token's numbers depend on no other token, but for
// one alone, which waits for memory and not for arithmetic: its weights become floats. Prompts: prompts_avx512_bf16.cpp.
// Next: decoder.hpp.
#include "packed.hpp"

#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__x86_64__)
#include <immintrin.h>

namespace tinylm {

// y at strips first to last - 1, see Kernels::product.
void prompt_product_avx512(const Prompt& prompt, const float* bias, bool gelu, uint16_t* y, int first, int last, uint16_t* room);

namespace {

constexpr int kStep = 32;              // inputs in a vector
constexpr int kRows = 3, kTokens = 8;  // at once: 24 vectors of sums, 3 of weights, and one of activations
constexpr int kKept = 48;              // rows that stay in the second-level cache until all tokens had them

// Of a token alone: floats, by turns 16 inputs with even numbers and 16 with odd ones.
void split_alone(const float* x, int inputs, float* out) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
  for (int i = 0; i < inputs; i += kStep) {
    const __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + kStep / 2);
    _mm512_storeu_ps(out + i, _mm512_permutex2var_ps(a, even, b));
    _mm512_storeu_ps(out + i + kStep / 2, _mm512_permutex2var_ps(a, odd, b));
  }
}

// Of one of several tokens: by turns the high parts of 32 inputs and their low ones.
void split(const float* x, int inputs, int token, int tokens, uint16_t* columns) {
  if (tokens == 1) return split_alone(x, inputs, reinterpret_cast<float*>(columns));
  uint16_t* out = columns + size_t(token) * 2 * inputs;
  for (int i = 0; i < inputs; i += 16) {
    const __m512 all = _mm512_loadu_ps(x + i);
    const __m256i high = (__m256i)_mm512_cvtneps_pbh(all);
    const __m512 rest = _mm512_sub_ps(all, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
    uint16_t* to = out + i / kStep * 2 * kStep + i % kStep;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), high);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + kStep), (__m256i)_mm512_cvtneps_pbh(rest));
  }
}

// A compiler would read it again from memory for each product.
inline __m512bh held(const void* from) {
  __m512i a = _mm512_loadu_si512(from);
  __asm__("" : "+v"(a));
  return (__m512bh)a;
}

// The sum of each of 16 vectors: two become one at each step, which holds the sums of their halves.
inline void sum_each(const __m512 (&a)[16], float* out) {
  __m512 b[8], c[4], d[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 8], 0x44), _mm512_shuffle_f32x4(a[i], a[i + 8], 0xEE));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[i], b[i + 4], 0x88), _mm512_shuffle_f32x4(b[i], b[i + 4], 0xDD));
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    d[i] = _mm512_add_ps(_mm512_shuffle_ps(c[i], c[i + 2], 0x44), _mm512_shuffle_ps(c[i], c[i + 2], 0xEE));
  const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(d[0], d[1], 0x88), _mm512_shuffle_ps(d[0], d[1], 0xDD));
  const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
  _mm512_storeu_ps(out, _mm512_permutexvar_ps(order, all));
}

// Dot products of R rows of weights with N tokens.
template <int R, int N>
void tile(const uint8_t* rows, const uint16_t* x, int inputs, float (&out)[R][N]) {
  const size_t row_bytes = size_t(inputs) * 2, token = size_t(inputs) * 2;
  __m512 sums[R][N];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sums[r][n] = _mm512_setzero_ps();
  for (int i = 0; i < inputs; i += kStep) {
    __m512bh w[R];
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) {
      const uint8_t* from = rows + r * row_bytes + size_t(i) * 2;
      _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T1);
      w[r] = held(from);
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const __m512bh high = held(x + n * token + 2 * i);
#pragma GCC unroll 3
      for (int r = 0; r < R; ++r) sums[r][n] = _mm512_dpbf16_ps(sums[r][n], w[r], high);
      const __m512bh low = held(x + n * token + 2 * i + kStep);
#pragma GCC unroll 3
      for (int r = 0; r < R; ++r) sums[r][n] = _mm512_dpbf16_ps(sums[r][n], w[r], low);
    }
  }
  constexpr int kVectors = (R * N + 15) / 16;
  __m512 all[kVectors][16] = {};
  float totals[kVectors * 16];
#pragma GCC unroll 24
  for (int k = 0; k < R * N; ++k) all[k / 16][k % 16] = sums[k / N][k % N];
  for (int v = 0; v < kVectors; ++v) sum_each(all[v], totals + v * 16);
  for (int k = 0; k < R * N; ++k) out[k / N][k % N] = totals[k];
}

// What `linear` is given.
struct Product {
  const Packed& m;
  const Activations& x;
  const float* bias;
  float* y;
  size_t stride;
  bool add;

  // R rows from `output` on, N tokens from `token` on.
  template <int R, int N>
  void some(int output, int token) const {
    float values[R][N];
    tile<R, N>(m.data + size_t(output) * m.inputs * 2, x.columns + size_t(token) * 2 * m.inputs, m.inputs, values);
    for (int n = 0; n < N; ++n) {
      float* to = y + size_t(token + n) * stride + output;
      for (int r = 0; r < R; ++r) {
        const float value = values[r][n] + (bias ? bias[output + r] : 0);
        to[r] = add ? to[r] + value : value;
      }
    }
  }

  // `tokens` (1 to Most) of them.
  template <int R, int Most>
  void tokens(int tokens_, int output, int token) const {
    if constexpr (Most > 1)
      if (tokens_ < Most) return tokens<R, Most - 1>(tokens_, output, token);
    some<R, Most>(output, token);
  }
};

// One row times a token alone, as 16 sums. A line of weights is 16 pairs: shifted to the left they are floats of the even
// ones, without their lower halves those of the odd ones. One instruction reads all of a row, as in kernels.inc.
__m512 row_alone(const uint8_t* row, const float* x, int inputs) {
  const __m512i upper = _mm512_set1_epi32(int(0xFFFF0000));
  __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
#pragma GCC unroll 1
  for (int i = 0; i < inputs; i += kStep) {
    _mm_prefetch(reinterpret_cast<const char*>(row + i * 2 + ahead_alone.light), _MM_HINT_T1);
    const __m512i w = _mm512_loadu_si512(row + i * 2);
    even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), _mm512_loadu_ps(x + i), even);
    odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(w, upper)), _mm512_loadu_ps(x + i + kStep / 2), odd);
  }
  return _mm512_add_ps(even, odd);
}

// `linear` of a token alone. The sums of 16 rows are added up together: one row's would keep the next one waiting.
void linear_alone(const Packed& m, const Activations& x, const float* bias, float* y, int first, int last, bool add) {
  const float* floats = reinterpret_cast<const float*>(x.columns);
  for (int block = first; block < last; ++block) {
    const int output = block * kLanes, rows = m.outputs - output < kLanes ? m.outputs - output : kLanes;
    __m512 sums[kLanes] = {};
    for (int r = 0; r < rows; ++r)
      sums[r] = row_alone(m.data + size_t(output + r) * m.inputs * 2, floats, m.inputs);
    float values[kLanes];
    sum_each(sums, values);
    for (int r = 0; r < rows; ++r) {
      const float value = values[r] + (bias ? bias[output + r] : 0);
      y[output + r] = add ? y[output + r] + value : value;
    }
  }
}

void linear(const Packed& m, const Activations& x, const float* bias, float* y, size_t stride, int first, int last,
            bool add) {
  if (!m.splits()) return kAvx512->linear(m, x, bias, y, stride, first, last, add);
  if (x.tokens == 1) return linear_alone(m, x, bias, y, first, last, add);
  const Product product{m, x, bias, y, stride, add};
  const int end = last * kLanes < m.outputs ? last * kLanes : m.outputs, tiles = (x.tokens + kTokens - 1) / kTokens;
  for (int begin = first * kLanes; begin < end; begin += kKept) {
    const int until = begin + kKept < end ? begin + kKept : end;
    for (int t = 0; t < tiles; ++t) {  // of nearly equal size
      const int token = int(int64_t(x.tokens) * t / tiles), count = int(int64_t(x.tokens) * (t + 1) / tiles) - token;
      int output = begin;
      for (; output + kRows <= until; output += kRows) product.tokens<kRows, kTokens>(count, output, token);
      for (; output < until; ++output) product.tokens<1, kTokens>(count, output, token);
    }
  }
}

}  // namespace

const Kernels* avx512_bf16() {
  if (!kAvx512) return nullptr;
  static Kernels table = *kAvx512;
  table.name = "avx512_bf16", table.linear = linear, table.split = split;
  table.product = prompt_product_avx512, table.attend_prompt = attend_prompt;
  return &table;
}

}  // namespace tinylm
#else
namespace tinylm {
const Kernels* avx512_bf16() { return nullptr; }
}
#endif
