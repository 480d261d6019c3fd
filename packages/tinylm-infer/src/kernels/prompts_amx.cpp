// A prompt's products on AMX: many tokens in bfloat16 × a matrix in bfloat16, y = x Wᵀ + bias.
//
// With many tokens arithmetic decides, not memory, and a tile can hold tokens on the left and weights on the right. The
// right factor has to lie in pairs of inputs side by side for 16 outputs: a strip of 32 rows of W is turned (its own memory
// stays as PyTorch keeps it), and all tokens are multiplied with it. A block of 32 tokens × 32 outputs is four tiles of
// sums; while it is multiplied, the last one gets its bias, GELU and rounding, which other units of the core do, and the
// next strip is asked for. Each output is added up in the order of the inputs: a token's numbers depend on no other token.
// What does not help is in docs/log.md. Few tokens: kernels_amx.cpp. Next: decoder.hpp.
#include "packed.hpp"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512F__) && \
    defined(__linux__) && defined(__x86_64__)
#include <immintrin.h>

#include "tiles_amx.hpp"

namespace tinylm {
namespace {

constexpr size_t kTile = 16 * 32;       // numbers in a tile of weights: [16 pairs of inputs][16 outputs][2]
constexpr int64_t kTokenBytes = 3 << 19;  // of x at a time: with a strip they stay in the second-level cache

// `rows` (at most 32) rows of W as tiles, the others zeros: for each 32 inputs one of outputs 0 to 15, one of 16 to 31.
void turn(const uint16_t* weights, int inputs, int rows, uint16_t* strip) {
  for (int half = 0; half < 2; ++half, weights += size_t(16) * inputs, rows -= 16)
    for (int i = 0; i < inputs; i += 32) {
      __m512i row[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r)
        row[r] = r < rows ? _mm512_loadu_si512(weights + size_t(r) * inputs + i) : _mm512_setzero_si512();
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

// What is left to do with a block's sums: y = bfloat16(gelu(sums + bias)).
struct Block {
  const float* sums = nullptr;  // [token half][output half][16][16]
  const float* bias = nullptr;  // of its 32 outputs, or null
  uint16_t* y = nullptr;
  int tokens = 0, outputs = 0;

  template <bool Gelu>
  void row(int token, size_t stride) const {
    if (token >= tokens) return;
    const float* from = sums + (token / 16) * 512 + (token % 16) * 16;
    __m512 low = _mm512_load_ps(from), high = _mm512_load_ps(from + 256);
    const __mmask32 mask = outputs == kStrip ? ~__mmask32(0) : (__mmask32(1) << outputs) - 1;
    if (bias) {
      low = _mm512_add_ps(low, _mm512_maskz_loadu_ps(__mmask16(mask), bias));
      high = _mm512_add_ps(high, _mm512_maskz_loadu_ps(__mmask16(mask >> 16), bias + 16));
    }
    if constexpr (Gelu) low = gelu(low), high = gelu(high);
    _mm512_mask_storeu_epi16(y + size_t(token) * stride, mask, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
};

// sums = 32 tokens × a strip. Meanwhile `last` is finished, and `lines` lines at each step are asked for.
template <bool Gelu>
void multiply(const uint16_t* x, const uint16_t* strip, int inputs, float* sums, const Block& last, size_t stride,
              const uint8_t* ahead, int lines) {
  const size_t row_bytes = size_t(inputs) * 2, half = size_t(inputs) * 16;
  const int steps = inputs / 32;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int step = 0, done = 0; step < steps; ++step, x += 32, strip += 2 * kTile) {
    for (int line = 0; line < lines; ++line, ahead += kAlign)
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
    _tile_loadd(4, x, row_bytes);
    _tile_loadd(6, strip, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, strip + kTile, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, x + half, row_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    for (const int until = kStrip * (step + 1) / steps; done < until; ++done) last.row<Gelu>(done, stride);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

template <bool Gelu>
void product(const Prompt& p, const float* bias, uint16_t* y, int first, int last, uint16_t* room) {
  const size_t inputs = size_t(p.inputs), outputs = size_t(p.outputs);
  uint16_t *strip = room, *tail = room + kStrip * inputs;  // tail: the last tokens, filled up with zeros
  const int whole = p.tokens / kStrip * kStrip, rest = p.tokens - whole;
  __builtin_memcpy(tail, p.x + whole * inputs, rest * inputs * 2);
  __builtin_memset(tail + rest * inputs, 0, (kStrip - rest) * inputs * 2);
  const int64_t fit = kTokenBytes / int64_t(inputs * 2 * kStrip);
  const int part = (fit < 1 ? 1 : int(fit)) * kStrip;
  alignas(64) float sums[2][4 * 256];
  Block waiting;
  int turn_of = 0;
  _tile_loadconfig(&kTiles);
  for (int from = 0; from < p.tokens; from += part) {
    const int to = from + part < p.tokens ? from + part : p.tokens, blocks = (to - from + kStrip - 1) / kStrip;
    const int lines = (kStrip + blocks - 1) / blocks;
    for (int number = first; number < last; ++number) {
      const int output = number * kStrip, count = p.outputs - output < kStrip ? p.outputs - output : kStrip;
      turn(p.weights + output * inputs, p.inputs, count, strip);
      const uint8_t* ahead = reinterpret_cast<const uint8_t*>(p.weights + (output + kStrip) * inputs);
      for (int token = from; token < to; token += kStrip, turn_of ^= 1, ahead += inputs / 32 * lines * kAlign) {
        const uint16_t* x = token < whole ? p.x + token * inputs : tail;
        multiply<Gelu>(x, strip, p.inputs, sums[turn_of], waiting, outputs, ahead, lines);
        waiting = {sums[turn_of], bias ? bias + output : nullptr, y + token * outputs + output,
                   p.tokens - token < kStrip ? p.tokens - token : kStrip, count};
      }
    }
  }
  for (int token = 0; token < kStrip; ++token) waiting.row<Gelu>(token, outputs);
  _tile_release();
}

}  // namespace

void prompt_product(const Prompt& p, const float* bias, bool gelu, uint16_t* y, int first, int last, uint16_t* room) {
  gelu ? product<true>(p, bias, y, first, last, room) : product<false>(p, bias, y, first, last, room);
}

}  // namespace tinylm
#endif
