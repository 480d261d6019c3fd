// bfloat16 matrices on AMX (Sapphire Rapids and later), whose one instruction multiplies 16 rows of 32 weights with 32
// inputs of 16 columns. Everything else is AVX-512's.
//
// The weights are the left factor, read where PyTorch keeps them: nothing is packed or kept twice. The columns on the
// right are tokens. AMX multiplies bfloat16 only, so an activation of 24 bits becomes two columns of 8 bits each,
// x ≈ high + low with a relative error below 2^-17: eight tokens fill a tile, and the memory that the weights come from
// is what a step waits for. Each output of each column is added up in the order of the inputs, so a token's numbers
// depend on no other token; the other instruction sets add in another order.
//
// A token alone does without tiles: their 16 rows come from 16 places, and rows that are read from end to end come a
// fifth faster. AVX-512's product of pairs of bfloat16 takes the same two parts of an activation, but adds in an order of
// its own. Linux only, which grants the tiles to a process that asks. Next: decoder.hpp.
#include "packed.hpp"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512F__) && \
    defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tiles_amx.hpp"
#include "transpose.hpp"

namespace tinylm {
namespace {

constexpr int kRows = 16, kStep = 32;         // outputs and inputs of a tile of weights
constexpr size_t kTile = kRows * kStep;       // numbers in a tile of columns: [16 pairs of inputs][16 columns][2]

// The columns of one token: eight tokens to a group, of which the high parts are columns 0 to 7, the low ones 8 to 15.
// A token alone: all its high parts, then all its low ones.
void split(const float* x, int inputs, int token, int tokens, uint16_t* columns) {
  uint16_t* out = columns + size_t(token / kSplitTokens) * size_t(inputs) * kRows + token % kSplitTokens * 2;
  for (int i = 0; i < inputs; i += 16, out += 8 * 32) {
    const __m512 all = _mm512_loadu_ps(x + i);
    const __m256i high = (__m256i)_mm512_cvtneps_pbh(all);
    const __m512 rest = _mm512_sub_ps(all, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
    const __m256i low = (__m256i)_mm512_cvtneps_pbh(rest);
    if (tokens == 1) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(columns + i), high);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(columns + inputs + i), low);
      continue;
    }
    alignas(32) uint32_t highs[8], lows[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(highs), high);
    _mm256_store_si256(reinterpret_cast<__m256i*>(lows), low);
    for (int pair = 0; pair < 8; ++pair) {
      __builtin_memcpy(out + pair * 32, highs + pair, 4);
      __builtin_memcpy(out + pair * 32 + 16, lows + pair, 4);
    }
  }
}

// One row of weights times a token alone. Four sums, so that no product waits for the one before.
float dot(const uint8_t* row, int inputs, const uint16_t* high) {
  const uint16_t* low = high + inputs;
  __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
#pragma GCC unroll 1  // one instruction reads all of a row, as in kernels.inc
  for (int i = 0; i < inputs; i += kStep) {
    _mm_prefetch(reinterpret_cast<const char*>(row + i * 2 + kAhead), _MM_HINT_T1);
    const __m512bh w = (__m512bh)_mm512_loadu_si512(row + i * 2);
    const __m512 highs = _mm512_dpbf16_ps(sums[0], w, (__m512bh)_mm512_loadu_si512(high + i));
    const __m512 lows = _mm512_dpbf16_ps(sums[1], w, (__m512bh)_mm512_loadu_si512(low + i));
    sums[0] = sums[2];
    sums[1] = sums[3];
    sums[2] = highs;
    sums[3] = lows;
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[2]), _mm512_add_ps(sums[1], sums[3])));
}

// sums[r][g] (16 outputs, 16 columns) of R blocks of rows and G groups of columns. At each step `lines`
// lines from `ahead` on, which will be read later, are asked for.
template <int R, int G>
void multiply(const uint8_t* weights, int inputs, const uint16_t* columns, const uint8_t* ahead, int lines,
              float (&sums)[R][G][kRows * 16]) {
  const size_t row_bytes = size_t(inputs) * 2, group = size_t(inputs) * kRows, block = kRows * row_bytes;
  _tile_zero(0);
  if constexpr (G > 1) _tile_zero(1);
  if constexpr (R > 1) _tile_zero(2);
  if constexpr (R > 1 && G > 1) _tile_zero(3);
  for (int i = 0; i < inputs; i += kStep, weights += kStep * 2, columns += kTile) {
#pragma GCC unroll 4
    for (int line = 0; line < lines; ++line, ahead += 64)
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
    _tile_loadd(6, columns, 64);
    _tile_loadd(4, weights, row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (G > 1) {
      _tile_loadd(7, columns + group, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (R > 1) {
      _tile_loadd(5, weights + block, row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (G > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0][0], 64);
  if constexpr (G > 1) _tile_stored(1, sums[0][1], 64);
  if constexpr (R > 1) _tile_stored(2, sums[1][0], 64);
  if constexpr (R > 1 && G > 1) _tile_stored(3, sums[1][1], 64);
}

// To y (tokens, stride): of the 16 outputs from `start` on those in `mask`, of one group's tokens.
void put(const float* sums, int start, __mmask16 mask, int tokens, const float* bias, float* y, size_t stride, bool add) {
  __m512i columns[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) columns[r] = _mm512_loadu_si512(sums + r * 16);
  transpose(columns);
  const __m512 shift = bias ? _mm512_loadu_ps(bias + start) : _mm512_setzero_ps();
#pragma GCC unroll 8
  for (int token = 0; token < kSplitTokens; ++token) {
    if (token >= tokens) break;
    float* to = y + size_t(token) * stride + start;
    __m512 sum = _mm512_castsi512_ps(columns[token]);
    sum = _mm512_add_ps(_mm512_add_ps(sum, _mm512_castsi512_ps(columns[token + kSplitTokens])), shift);
    if (add) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), sum);
    _mm512_mask_storeu_ps(to, mask, sum);
  }
}

// What `linear` is given, and some of it: R blocks of 16 outputs from `start` on × G groups of tokens from `group` on.
struct Product {
  const Packed& m;
  const Activations& x;
  const float* bias;
  float* y;
  size_t stride;
  bool add;

  template <int R, int G>
  void some(int start, __mmask16 mask, int group, const uint8_t* ahead, int lines) const {
    alignas(64) float sums[R][G][kRows * 16];
    const uint16_t* columns = x.columns + group * size_t(m.inputs) * kRows;
    multiply<R, G>(m.data + size_t(start) * m.inputs * 2, m.inputs, columns, ahead, lines, sums);
    for (int r = 0; r < R; ++r)
      for (int g = 0; g < G; ++g) {
        const int token = (group + g) * kSplitTokens;
        put(sums[r][g], start + r * kRows, mask, x.tokens - token, bias, y + size_t(token) * stride, stride, add);
      }
  }
};

void linear(const Packed& m, const Activations& x, const float* bias, float* y, size_t stride, int first, int last,
            bool add) {
  if (!m.splits()) return kAvx512->linear(m, x, bias, y, stride, first, last, add);
  if (x.tokens == 1) {
    const int end = last * kRows < m.outputs ? last * kRows : m.outputs;
    for (int output = first * kRows; output < end; ++output) {
      const float value = dot(m.data + size_t(output) * m.inputs * 2, m.inputs, x.columns) + (bias ? bias[output] : 0);
      y[output] = add ? y[output] + value : value;
    }
    return;
  }
  const Product product{m, x, bias, y, stride, add};
  const int groups = (x.tokens + kSplitTokens - 1) / kSplitTokens, passes = (groups + 1) / 2;
  _tile_loadconfig(&kTiles);
  for (int block = first; block < last;) {
    const int begin = block * kRows;
    const bool two = groups > 1 && block + 2 <= last && begin + 2 * kRows <= m.outputs;
    const int start = begin + kRows <= m.outputs ? begin : m.outputs - kRows;  // the last rows: some of them again
    const __mmask16 mask = __mmask16(0xFFFF << (begin - start));
    // What comes after these rows: each pass over them asks for its part of it.
    const int rows = (two ? 2 : 1) * kRows, lines = (rows + passes - 1) / passes;
    const uint8_t* ahead = m.data + size_t(start + rows) * m.inputs * 2;
    for (int group = 0; group < groups; group += 2, ahead += size_t(m.inputs / kStep) * lines * 64) {
      if (group + 1 < groups)
        two ? product.some<2, 2>(start, mask, group, ahead, lines) : product.some<1, 2>(start, mask, group, ahead, lines);
      else
        two ? product.some<2, 1>(start, mask, group, ahead, lines) : product.some<1, 1>(start, mask, group, ahead, lines);
    }
    block += two ? 2 : 1;
  }
  _tile_release();
}

// Whether processor and system give tiles to this process.
bool granted() {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx >> 22 & 1) || !(edx >> 24 & 1)) return false;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace

const Kernels* amx() {
  if (!kAvx512 || !granted()) return nullptr;
  static Kernels table = *kAvx512;
  table.name = "amx", table.linear = linear, table.split = split, table.product = prompt_product, table.attend_prompt = attend_prompt;
  return &table;
}

}  // namespace tinylm
#else
namespace tinylm {
const Kernels* amx() { return nullptr; }
}
#endif
