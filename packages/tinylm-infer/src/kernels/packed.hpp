// The layouts of matrices, and the table of functions that each instruction set offers over them.
//
// Plain weights (32 bits: float, 16 bits: bfloat16) lie row by row, as PyTorch keeps them, and are multiplied where they
// are. Quantised weights have one layout:
//
// A matrix (outputs, inputs) is cut into blocks of 16 outputs (the last one padded with zero scales), its inputs are
// padded to a multiple of 32 and cut into groups that share a scale: of 32, or all inputs in one group. A block is
//
//     scales   groups × 16 float16, padded to a multiple of 64 bytes
//     minima   the same, only where the matrix has them
//     numbers  8 bits: for each 4 inputs  64 bytes, [16 outputs][4 inputs], q + 128
//              4 bits: for each 8 inputs  64 bytes, [16 outputs][4 bytes], byte j = input j, and input j + 4 above it
//
// and weight = scale · (q - zero) + minimum, where zero is 128 for 8 bits; for 4 bits 8, or 0 with minima. Outputs stand
// side by side in a vector's lanes, so no lane is ever added to another, and every instruction set, and PyTorch, adds
// the same numbers in the same order: results are equal to the last bit (which is why nothing here is contracted to
// fused multiply-adds). Not here: how weights are rounded (quantization/rounding.py). Next: kernels.inc.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tinylm {

constexpr int kLanes = 16;      // outputs in a block
constexpr int kGroup = 32;      // inputs that share a scale, unless all do
constexpr int kSplitTokens = 8; // tokens whose activations, in two parts, are one group of columns (kernels_amx.cpp)
constexpr size_t kAlign = 64;   // bytes: one cache line, one AVX-512 vector

// Weights stream from memory once for each token: where they will be needed next is asked for this many bytes ahead.
// Found by trying 1 to 64 KiB, weights in pages of 2 MB: below 4 KiB a core waits, above 16 KiB nothing changes.
constexpr size_t kAhead = 16384;
// A token alone wants less of it on AMD's processors (Zen 4): a core that reads one stream finds the next lines by itself,
// the further the less is computed with a line, and what is asked for far ahead then takes a quarter of the speed away
// (docs/log.md). Set in module.cpp.
struct Ahead {
  size_t light = kAhead, heavy = kAhead;  // bytes: bfloat16 (without AMX), float32 and 8 bits, and 4 bits
};
extern Ahead ahead_alone;

constexpr size_t round_up(size_t size, size_t to) { return (size + to - 1) / to * to; }

struct Packed {
  const uint8_t* data;
  int outputs, inputs;  // as the caller knows them
  int bits;             // 8 or 4; 32 or 16: plain
  bool grouped;         // a scale for each 32 inputs, or one for all
  bool minima;

  bool plain() const { return bits >= 16; }
  bool splits() const { return bits == 16 && inputs % kGroup == 0 && outputs >= kLanes; }  // fits tiles of 16 by 32
  int padded_inputs() const { return int(round_up(size_t(inputs), kGroup)); }
  int groups() const { return grouped ? padded_inputs() / kGroup : 1; }
  int group() const { return grouped ? kGroup : padded_inputs(); }
  int blocks() const { return (outputs + kLanes - 1) / kLanes; }
  size_t scale_bytes() const { return round_up(size_t(groups()) * kLanes * 2, kAlign); }
  size_t number_offset() const { return scale_bytes() * (minima ? 2 : 1); }
  size_t block_bytes() const { return number_offset() + size_t(padded_inputs()) * kLanes * bits / 8; }
  size_t bytes() const {
    return plain() ? size_t(outputs) * size_t(inputs) * size_t(bits) / 8 : block_bytes() * size_t(blocks());
  }
};

// Fills `out` (bytes() of zeros), of which `m` is the shape, with numbers (outputs, inputs) and float16 scales and minima
// (outputs, groups). quantization/packing.py has the inverse.
inline void pack(const Packed& m, const int8_t* numbers, const uint16_t* scales, const uint16_t* minima, uint8_t* out) {
  const int step = m.bits == 8 ? 4 : 8, groups = m.groups();
  const uint8_t padding = m.bits == 8 ? 128 : (m.minima ? 0 : 8 | 8 << 4);  // a weight of zero
  for (int block = 0; block < m.blocks(); ++block, out += m.block_bytes()) {
    uint8_t* to = out + m.number_offset();
    __builtin_memset(to, padding, m.block_bytes() - m.number_offset());
    for (int lane = 0; lane < kLanes && block * kLanes + lane < m.outputs; ++lane) {
      const size_t output = size_t(block) * kLanes + lane;
      for (int g = 0; g < groups; ++g) {
        const size_t at = size_t(g * kLanes + lane) * 2;
        __builtin_memcpy(out + at, scales + output * groups + g, 2);
        if (m.minima) __builtin_memcpy(out + m.scale_bytes() + at, minima + output * groups + g, 2);
      }
      const int8_t* row = numbers + output * m.inputs;
      for (int i = 0; i < m.inputs; i += step) {
        uint8_t few[8], *bytes = to + size_t(i / step) * kAlign + lane * 4;
        const int real = m.inputs - i < step ? m.inputs - i : step;
        __builtin_memset(few, m.bits == 8 ? 0 : padding & 15, 8);
        for (int j = 0; j < real; ++j) few[j] = uint8_t(row[i + j]);
        for (int j = 0; j < 4; ++j) bytes[j] = m.bits == 8 ? few[j] ^ 128 : uint8_t(few[j] | few[j + 4] << 4);
      }
    }
  }
}

// Activations of some tokens: as they are, which is all that plain weights need, and rounded to 8 bits, x ≈ scale · q for
// each token and group.
struct Activations {
  const float* floats;  // (tokens, inputs)
  int8_t* numbers;  // (tokens, padded inputs), zeros behind the last input
  float* scales;    // (tokens, groups)
  int32_t* sums;    // (tokens, groups): sum of q
  uint16_t* columns;  // each number in 32 bits, as `Kernels::split` lays them: only where there is one
  int tokens, padded_inputs, groups;
};

// How many bfloat16 the columns of so many tokens take.
constexpr size_t column_count(size_t tokens, size_t inputs) { return round_up(tokens, kSplitTokens) * inputs * 2; }

// Where the keys or values of one sequence and one key head lie: token t at number
// blocks[t / block_size] · block_stride + (t % block_size) · token_stride of data, head_dim numbers. A cache in one piece
// is one block.
struct CacheView {
  const void* data;  // float, or bfloat16
  const int64_t* blocks;
  int64_t block_size, block_stride, token_stride;

  int64_t at(int64_t token) const {
    return blocks[token / block_size] * block_stride + token % block_size * token_stride;
  }
};

constexpr int kStrip = 32;  // outputs, and tokens, that a prompt's product works on at once

// A prompt's tokens x (tokens, inputs) and a matrix (outputs, inputs), both bfloat16; inputs a multiple of 32.
struct Prompt {
  const uint16_t* x;
  const uint16_t* weights;
  int tokens, inputs, outputs;

  int strips() const { return (outputs + kStrip - 1) / kStrip; }
  size_t room() const { return size_t(2 * kStrip) * inputs; }  // numbers that each thread needs beside
};

// A prompt's queries q and out (queries, heads, size), and the keys and values k, v (keys, kv_heads, size) of one text, whose
// last tokens the queries are; all bfloat16. window: how many tokens a token attends to; 0: all before it.
struct PromptHeads {
  const uint16_t *q, *k, *v;
  uint16_t* out;
  int64_t queries, keys, heads, kv_heads, size, window;

  bool fits() const { return size == 32 || size == 64 || size == 96 || size == 128; }
  size_t room() const { return round_up(size_t(keys), kStrip) * size_t(2 * size + 24); }  // numbers that a thread needs
};

// What a file of one instruction set exports.
struct Kernels {
  const char* name;
  // scale = max|x| / 127, q = round(x · (127 / max|x|)), halves to even; a group of zeros has scale 0.
  void (*quantize)(const float* x, int inputs, int tokens, const Activations& out);
  // Null, or: the columns (Activations) of one of so many tokens, which `linear` then takes where the matrix `splits()`.
  void (*split)(const float* x, int inputs, int token, int tokens, uint16_t* columns);
  // y (tokens, stride) at blocks first to last - 1 of the matrix: x Wᵀ + bias, added to y or instead of it; bias may be
  // null.
  void (*linear)(const Packed& matrix, const Activations& x, const float* bias, float* y, size_t stride, int first,
                 int last, bool add);
  // LayerNorm where there is a bias, else RMSNorm, of one row.
  void (*norm)(const float* x, const float* weight, const float* bias, float eps, int size, float* y);
  // Turns the pairs (x[i], x[i + size / 2]) of one head in place (RoPE); cos and sin have size / 2 numbers.
  void (*rotate)(float* x, const float* cos, const float* sin, int size);
  // softmax(q kᵀ / √size) v of one query over the tokens first to last; `scores` has room for all of them. Keys and values
  // are float, or bfloat16.
  void (*attend)(const float* q, const CacheView& keys, const CacheView& values, int64_t first, int64_t last, int size,
                 float* scores, float* out);
  void (*attend_bfloat16)(const float* q, const CacheView& keys, const CacheView& values, int64_t first, int64_t last,
                          int size, float* scores, float* out);
  // gate null: up = GELU(up), tanh form; else up = SiLU(gate) · up.
  void (*activate)(const float* gate, float* up, int size);
  // To bfloat16: to nearest, halves to even.
  void (*round_bfloat16)(const float* x, int64_t size, uint16_t* out);
  // GELU, tanh form, of bfloat16 in place.
  void (*gelu_bfloat16)(uint16_t* x, int64_t size);
  // Null, or: y (tokens, outputs) = x Wᵀ + bias, then GELU if wanted, at strips first to last - 1; bias may be null. `room`
  // begins at a cache line and is the calling thread's own.
  void (*product)(const Prompt& prompt, const float* bias, bool gelu, uint16_t* y, int first, int last,
                  uint16_t* room);
  // Null, or: attention of the queries that read key head `head`, where `fits()`; `room` as for product.
  void (*attend_prompt)(const PromptHeads& heads, int64_t head, uint16_t* room);
};

extern const Kernels kPortable;
extern const Kernels* const kAvx2;    // null where the compiler cannot build them
extern const Kernels* const kAvx512;  // AVX-512 F, BW and VNNI
// Null where the compiler cannot build them, amx() also where processor or system have no tiles; to be called where
// the processor is known to have AVX-512 and its bfloat16.
const Kernels* amx();
const Kernels* avx512_bf16();
void attend_prompt(const PromptHeads& heads, int64_t head, uint16_t* room);  // where there are these two

}  // namespace tinylm
