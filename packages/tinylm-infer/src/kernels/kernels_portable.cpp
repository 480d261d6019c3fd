// The kernels in plain C++, for any processor: the reference of the other two, and what runs where they cannot.
#include "packed.hpp"

namespace tinylm {
namespace {

constexpr int kRows = 1, kTokens = 4, kRowsGrouped = 1, kTokensGrouped = 4;
constexpr int kPlainRows = 1;
constexpr bool kOneLoad = false;

struct Ints { int32_t lane[kLanes]; };
struct Floats { float lane[kLanes]; };

Ints zero_ints() { return {}; }
Floats zero_floats() { return {}; }

template <class Make>
Floats each(Make make) {
  Floats out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = make(i);
  return out;
}

Floats to_float(const Ints& a) { return each([&](int i) { return float(a.lane[i]); }); }
Floats set(float x) { return each([&](int) { return x; }); }
Floats add(const Floats& a, const Floats& b) { return each([&](int i) { return a.lane[i] + b.lane[i]; }); }
Floats mul(const Floats& a, const Floats& b) { return each([&](int i) { return a.lane[i] * b.lane[i]; }); }
void store(float* to, const Floats& a) {
  for (int i = 0; i < kLanes; ++i) to[i] = a.lane[i];
}

Floats load(const float* from) { return each([&](int i) { return from[i]; }); }
Floats load_bfloat16(const uint8_t* from) {
  return each([&](int i) { return __builtin_bit_cast(float, uint32_t(from[2 * i] | from[2 * i + 1] << 8) << 16); });
}
float sum(Floats a) {
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) a.lane[i] += a.lane[i + half];
  return a.lane[0];
}

float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h >> 15) << 31, exponent = (h >> 10) & 31, fraction = h & 1023;
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(fraction) * 0x1p-24f;  // subnormal
  return __builtin_bit_cast(float, sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13);
}
Floats half(const uint8_t* from) {
  return each([&](int i) { return half_to_float(uint16_t(from[2 * i] | from[2 * i + 1] << 8)); });
}

void prefetch(const uint8_t*) {}

template <int Bits>
struct Weights {
  const uint8_t* w;
  explicit Weights(const uint8_t* from) : w(from) {}
  void dot(Ints& sum, const int8_t* x) const {
    for (int o = 0; o < kLanes; ++o)
      for (int j = 0; j < 4; ++j) {
        const int byte = w[4 * o + j];
        if constexpr (Bits == 8)
          sum.lane[o] += (byte - 128) * x[j];
        else
          sum.lane[o] += (byte & 15) * x[j] + (byte >> 4) * x[j + 4];
      }
  }
  static Ints finish(Ints sum, int32_t activations, int32_t zero_point) {
    for (int32_t& lane : sum.lane) lane -= zero_point * activations;
    return sum;
  }
};

#include "kernels.inc"
#include "elementwise.inc"

}  // namespace

const Kernels kPortable{"portable", quantize, nullptr, linear, norm, rotate,
                     attend<float>, attend<uint16_t>, activate, round_bfloat16, gelu_bfloat16};

}  // namespace tinylm
