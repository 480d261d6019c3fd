// A prompt's products (prompts.hpp) by AVX-512's product of pairs of bfloat16 (Cooper Lake, Zen 4 and later), which
// does twice the work of a product of floats. Eight tokens × 32 outputs are 16 vectors of sums: enough that none waits
// for its last product, with registers left for the weights. Few
// tokens: kernels_avx512_bf16.cpp. Next: decoder.hpp.
#include "packed.hpp"

#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__x86_64__)
#include "prompts.hpp"

namespace tinylm {
namespace {

struct Core {
  template <bool Gelu>
  void multiply(const uint16_t* x, const uint16_t* strip, int inputs, const Block& block, size_t stride,
                const uint8_t* ahead, int lines) const {
    for (int first = 0; first < block.tokens; first += 8, lines = 0) {
      __m512 low[8], high[8];
      eight(x + size_t(first) * inputs, size_t(inputs), strip, inputs, ahead, lines, low, high);
#pragma GCC unroll 8
      for (int token = 0; token < 8; ++token)
        if (first + token < block.tokens) block.put<Gelu>(first + token, low[token], high[token], stride);
    }
  }

  template <bool Gelu>
  void finish(size_t) const {}
};

}  // namespace

void prompt_product_avx512(const Prompt& p, const float* bias, bool gelu, uint16_t* y, int first, int last, uint16_t* room) {
  const auto all = gelu ? product<Core, true> : product<Core, false>;
  all(p, bias, y, first, last, room);
}

}  // namespace tinylm
#endif
