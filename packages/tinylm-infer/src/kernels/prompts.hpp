// A prompt's products in bfloat16: many tokens × a matrix, y = x Wᵀ + bias, then GELU if wanted.
//
// With many tokens arithmetic decides, not memory, and the instructions that multiply bfloat16 want pairs of inputs side by
// side for 16 outputs: a strip of 32 rows of W is turned (its own memory stays as PyTorch keeps it), and all tokens are
// multiplied with it, 32 at a time. What multiplies such a block is a Core: prompts_amx.cpp and prompts_avx512_bf16.cpp
// have one each. Each output is added up in the order of the inputs: a
// token's numbers depend on no other token. Few tokens: kernels.inc, kernels_amx.cpp. Next: prompts_avx512_bf16.cpp.
#pragma once
#include <immintrin.h>

#include "packed.hpp"
#include "transpose.hpp"

namespace tinylm {
namespace {

constexpr size_t kTile = 16 * 32;         // numbers in a tile of weights: [16 pairs of inputs][16 outputs][2]
constexpr int64_t kTokenBytes = 3 << 19;  // of x at a time: with a strip they stay in the second-level cache

// `rows` (at most 32) rows of W as tiles, the others zeros: for each 32 inputs one of outputs 0 to 15, one of 16 to 31.
// stride: from row to row.
inline void turn(const uint16_t* weights, size_t stride, int inputs, int rows, uint16_t* strip) {
  for (int half = 0; half < 2; ++half, weights += 16 * stride, rows -= 16)
    for (int i = 0; i < inputs; i += 32) {
      __m512i row[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r)
        row[r] = r < rows ? _mm512_loadu_si512(weights + size_t(r) * stride + i) : _mm512_setzero_si512();
      transpose(row);
      uint16_t* tile = strip + (size_t(i) / 16 + half) * kTile;
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) _mm512_store_si512(tile + r * 32, row[r]);
    }
}

// e^x, relative error about 2^-21: 2^n · p(x - n ln 2), Cephes' polynomial.
inline __m512 exponential(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  const __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.69314718f), x);
  __m512 p = _mm512_set1_ps(8.3334519073e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// 0.5 x (1 + tanh(u)) = x / (1 + e^(-2u)), u = √(2/π) (x + 0.044715 x³)
inline __m512 gelu(__m512 x) {
  const __m512 inner = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.071354814f), _mm512_set1_ps(-1.5957691f));
  const __m512 most = _mm512_set1_ps(87.0f), least = _mm512_set1_ps(-87.0f);
  const __m512 power = exponential(_mm512_max_ps(_mm512_min_ps(_mm512_mul_ps(x, inner), most), least));
  return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), power));
}

// Eight tokens × a strip, by AVX-512: their sums of outputs 0 to 15, and of 16 to 31. At each step `lines` lines from
// `ahead` on are asked for.
inline void eight(const uint16_t* x, size_t stride, const uint16_t* strip, int inputs, const uint8_t* ahead, int lines,
                  __m512 (&low)[8], __m512 (&high)[8]) {
#pragma GCC unroll 8
  for (int token = 0; token < 8; ++token) low[token] = high[token] = _mm512_setzero_ps();
  for (int i = 0; i < inputs; i += 32, strip += kTile) {
    for (int line = 0; line < lines; ++line, ahead += kAlign)
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
#pragma GCC unroll 2
    for (int pair = 0; pair < 32; pair += 2, strip += 32) {
      const __m512bh lows = (__m512bh)_mm512_load_si512(strip), highs = (__m512bh)_mm512_load_si512(strip + kTile);
#pragma GCC unroll 8
      for (int token = 0; token < 8; ++token) {
        int32_t both;
        __builtin_memcpy(&both, x + size_t(token) * stride + i + pair, 4);
        const __m512bh inputs_of_token = (__m512bh)_mm512_set1_epi32(both);
        low[token] = _mm512_dpbf16_ps(low[token], inputs_of_token, lows);
        high[token] = _mm512_dpbf16_ps(high[token], inputs_of_token, highs);
      }
    }
  }
}

// Where a block's 32 × 32 sums go, and what is left to do with them: y = bfloat16(gelu(sums + bias)).
struct Block {
  const float* bias = nullptr;  // of its 32 outputs, or null
  uint16_t* y = nullptr;
  int tokens = 0, outputs = 0;  // how many of them there are

  // One token's sums: of outputs 0 to 15, and of 16 to 31. stride: outputs of the whole matrix.
  template <bool Gelu>
  void put(int token, __m512 low, __m512 high, size_t stride) const {
    const __mmask32 mask = outputs == kStrip ? ~__mmask32(0) : (__mmask32(1) << outputs) - 1;
    if (bias) {
      low = _mm512_add_ps(low, _mm512_maskz_loadu_ps(__mmask16(mask), bias));
      high = _mm512_add_ps(high, _mm512_maskz_loadu_ps(__mmask16(mask >> 16), bias + 16));
    }
    if constexpr (Gelu) low = gelu(low), high = gelu(high);
    _mm512_mask_storeu_epi16(y + size_t(token) * stride, mask, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
};

// y at strips first to last - 1, see Kernels::product. A Core has
//
//     multiply<Gelu>(x, strip, inputs, block, stride, ahead, lines)   x: 32 tokens, one behind the other
//     finish<Gelu>(stride)                                            what multiply left to do
//
// and asks for `lines` lines from `ahead` on at each step of 32 inputs: the next strip, which comes from memory.
template <class Core, bool Gelu>
void product(const Prompt& p, const float* bias, uint16_t* y, int first, int last, uint16_t* room) {
  const size_t inputs = size_t(p.inputs), outputs = size_t(p.outputs);
  uint16_t *strip = room, *tail = room + kStrip * inputs;  // tail: the last tokens, filled up with zeros
  const int whole = p.tokens / kStrip * kStrip, rest = p.tokens - whole;
  __builtin_memcpy(tail, p.x + whole * inputs, rest * inputs * 2);
  __builtin_memset(tail + rest * inputs, 0, (kStrip - rest) * inputs * 2);
  const int64_t fit = kTokenBytes / int64_t(inputs * 2 * kStrip);
  const int part = (fit < 1 ? 1 : int(fit)) * kStrip;
  Core core;
  for (int from = 0; from < p.tokens; from += part) {
    const int to = from + part < p.tokens ? from + part : p.tokens, blocks = (to - from + kStrip - 1) / kStrip;
    const int lines = (kStrip + blocks - 1) / blocks;
    for (int number = first; number < last; ++number) {
      const int output = number * kStrip, count = p.outputs - output < kStrip ? p.outputs - output : kStrip;
      turn(p.weights + output * inputs, inputs, p.inputs, count, strip);
      const uint8_t* ahead = reinterpret_cast<const uint8_t*>(p.weights + (output + kStrip) * inputs);
      for (int token = from; token < to; token += kStrip, ahead += inputs / 32 * lines * kAlign) {
        const Block block{bias ? bias + output : nullptr, y + token * outputs + output,
                          p.tokens - token < kStrip ? p.tokens - token : kStrip, count};
        core.template multiply<Gelu>(token < whole ? p.x + token * inputs : tail, strip, p.inputs, block, outputs,
                                     ahead, lines);
      }
    }
  }
  core.template finish<Gelu>(outputs);
}

}  // namespace
}  // namespace tinylm
