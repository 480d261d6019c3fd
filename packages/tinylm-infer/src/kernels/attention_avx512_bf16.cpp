// A prompt's attention in bfloat16: softmax(q kᵀ / √size) v of many tokens, causal, by AVX-512's product of pairs of
// bfloat16; AMX's set uses it as well.
//
// One head of keys and values at a time. Its keys are turned as a matrix's rows are (prompts.hpp), its values become pairs
// of tokens; then eight queries at once find their scores, which stay in the second-level cache, and their sums. A
// token's numbers depend on no token after it and on none beside it. Few tokens: elementwise.inc. Next: decoder.hpp.
#include "packed.hpp"

#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__x86_64__)
#include "prompts.hpp"

namespace tinylm {
namespace {

constexpr int kQueries = 8;

// Tokens two by two: [token pair][number of the head][2]; where their number is odd, a zero stands beside the last one.
void pair_up(const uint16_t* rows, size_t stride, int64_t tokens, int size, uint16_t* out) {
  for (int64_t t = 0; t < tokens; t += 2, rows += 2 * stride)
    for (int i = 0; i < size; i += 16, out += 32) {
      const __m512i one = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + i)));
      __m512i other = _mm512_setzero_si512();
      if (t + 1 < tokens)
        other = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + stride + i)));
      _mm512_store_si512(out, _mm512_or_si512(one, _mm512_slli_epi32(other, 16)));
    }
}

// Which of 16 tokens from `start` on lie in first to last.
__mmask16 between(int64_t start, int64_t first, int64_t last) {
  const int64_t low = first - start, high = last - start + 1;
  const uint32_t below = high >= 16 ? 0xFFFF : high <= 0 ? 0 : (1u << high) - 1;
  const uint32_t above = low <= 0 ? 0xFFFF : low >= 16 ? 0 : 0xFFFF << low;
  return __mmask16(below & above);
}

// out = Σ shares · values over `pairs` pairs of tokens, for N queries of heads of V · 16 numbers.
template <int V, int N>
void add_up(const uint16_t* shares, size_t stride, const uint16_t* values, int64_t pairs, const float* factors,
            uint16_t* out, size_t out_stride, int count) {
  __m512 sums[N][V];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[n][v] = _mm512_setzero_ps();
  for (int64_t pair = 0; pair < pairs; ++pair, values += V * 32) {
    __m512bh of_tokens[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) of_tokens[v] = (__m512bh)_mm512_load_si512(values + v * 32);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      int32_t both;
      __builtin_memcpy(&both, shares + n * stride + 2 * pair, 4);
      const __m512bh share = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[n][v] = _mm512_dpbf16_ps(sums[n][v], share, of_tokens[v]);
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n)
    if (n < count)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + n * out_stride + v * 16),
                            (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(sums[n][v], _mm512_set1_ps(factors[n]))));
}

template <int V>
void attend_head(const PromptHeads& a, int64_t head, uint16_t* room) {
  constexpr int kSize = V * 16, kAtOnce = V <= 2 ? 8 : V <= 4 ? 4 : 2;  // queries whose sums fit the registers
  const int64_t padded = (a.keys + kStrip - 1) / kStrip * kStrip, group = a.heads / a.kv_heads;
  const size_t key_stride = size_t(a.kv_heads) * kSize, query_stride = size_t(a.heads) * kSize;
  uint16_t *turned = room, *pairs = turned + padded * kSize, *shares = pairs + padded * kSize;
  float* scores = reinterpret_cast<float*>(shares + kQueries * padded);
  for (int64_t k = 0; k < a.keys; k += kStrip)
    turn(a.k + k * key_stride + head * kSize, key_stride, kSize, int(a.keys - k < kStrip ? a.keys - k : kStrip), turned + k * kSize);
  pair_up(a.v + head * kSize, key_stride, a.keys, kSize, pairs);
  const __m512 scale = _mm512_set1_ps(1.0f / __builtin_sqrtf(float(kSize)));
  for (int64_t h = head * group; h < (head + 1) * group; ++h)
    for (int64_t t = 0; t < a.queries; t += kQueries) {
      const int count = int(a.queries - t < kQueries ? a.queries - t : kQueries);
      const int64_t before = a.keys - a.queries + t;  // keys that the first of them has before itself
      const int64_t start = a.window && before - a.window + 1 > 0 ? (before - a.window + 1) / kStrip * kStrip : 0;
      const int64_t end = before + count;
      alignas(64) uint16_t q[kQueries * kSize] = {};
      for (int n = 0; n < count; ++n)
        __builtin_memcpy(q + n * kSize, a.q + (t + n) * query_stride + h * kSize, kSize * 2);
      for (int64_t k = start; k < end; k += kStrip) {
        __m512 low[8], high[8];
        eight(q, kSize, turned + k * kSize, kSize, nullptr, 0, low, high);
#pragma GCC unroll 8
        for (int n = 0; n < kQueries; ++n) {
          _mm512_store_ps(scores + n * padded + k, _mm512_mul_ps(low[n], scale));
          _mm512_store_ps(scores + n * padded + k + 16, _mm512_mul_ps(high[n], scale));
        }
      }
      float factors[kQueries];
      for (int n = 0; n < kQueries; ++n) {
        const int64_t last = before + (n < count ? n : count - 1), first = a.window && last >= a.window ? last - a.window + 1 : 0;
        const __m512 least = _mm512_set1_ps(-3e38f);
        __m512 most = least, sum = _mm512_setzero_ps();
        for (int64_t k = start; k < end; k += 16)
          most = _mm512_max_ps(most, _mm512_mask_mov_ps(least, between(k, first, last), _mm512_load_ps(scores + n * padded + k)));
        most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
        const auto share = [&](int64_t k) {
          const __m512 x = _mm512_sub_ps(_mm512_load_ps(scores + n * padded + k), most);
          return _mm512_maskz_mov_ps(between(k, first, last), exponential(_mm512_max_ps(_mm512_set1_ps(-87.0f), x)));
        };
        for (int64_t k = start; k < end; k += kStrip) {
          const __m512 low = share(k), high = share(k + 16);
          sum = _mm512_add_ps(_mm512_add_ps(sum, low), high);
          _mm512_store_si512(shares + n * padded + k, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
        factors[n] = 1.0f / _mm512_reduce_add_ps(sum);
      }
      uint16_t* out = a.out + t * query_stride + h * kSize;
      for (int n = 0; n < count; n += kAtOnce, out += kAtOnce * query_stride)
        add_up<V, kAtOnce>(shares + n * padded + start, size_t(padded), pairs + start * kSize, (end - start + 1) / 2,
                           factors + n, out, query_stride, count - n);
    }
}

}  // namespace

void attend_prompt(const PromptHeads& a, int64_t head, uint16_t* room) {
  switch (a.size) {
    case 32: return attend_head<2>(a, head, room);
    case 64: return attend_head<4>(a, head, room);
    case 96: return attend_head<6>(a, head, room);
    default: return attend_head<8>(a, head, room);
  }
}

}  // namespace tinylm
#endif
