// A prompt's products (prompts.hpp) on AMX, whose tiles hold tokens on the left and weights on the right. A block of 32
// tokens × 32 outputs is four tiles of sums; while it is multiplied, the last one gets its bias, GELU and rounding, which
// other units of the core do, and the next strip is asked for. What does not help is in docs/log.md. Few tokens:
// kernels_amx.cpp. Next: decoder.hpp.
#include "packed.hpp"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512F__) && \
    defined(__linux__) && defined(__x86_64__)
#include "prompts.hpp"
#include "tiles_amx.hpp"

namespace tinylm {
namespace {

struct Core {
  alignas(64) float sums[2][4 * 256];  // by turns; [token half][output half][16][16]
  Block waiting;                       // whose sums are in the other of the two
  int turn_of = 0;

  Core() { _tile_loadconfig(&kTiles); }
  ~Core() { _tile_release(); }
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  template <bool Gelu>
  void row(int token, size_t stride) const {
    if (token >= waiting.tokens) return;
    const float* from = sums[turn_of ^ 1] + (token / 16) * 512 + (token % 16) * 16;
    waiting.put<Gelu>(token, _mm512_load_ps(from), _mm512_load_ps(from + 256), stride);
  }

  template <bool Gelu>
  void multiply(const uint16_t* x, const uint16_t* strip, int inputs, const Block& block, size_t stride,
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
      for (const int until = kStrip * (step + 1) / steps; done < until; ++done) row<Gelu>(done, stride);
    }
    float* to = sums[turn_of];
    _tile_stored(0, to, 64);
    _tile_stored(1, to + 256, 64);
    _tile_stored(2, to + 512, 64);
    _tile_stored(3, to + 768, 64);
    waiting = block;
    turn_of ^= 1;
  }

  template <bool Gelu>
  void finish(size_t stride) const {
    for (int token = 0; token < kStrip; ++token) row<Gelu>(token, stride);
  }
};

}  // namespace

void prompt_product(const Prompt& p, const float* bias, bool gelu, uint16_t* y, int first, int last, uint16_t* room) {
  const auto all = gelu ? product<Core, true> : product<Core, false>;
  all(p, bias, y, first, last, room);
}

}  // namespace tinylm
#endif
