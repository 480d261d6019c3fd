// What the files for AMX share: the shape of the tiles. Next: prompts_amx.cpp.
#pragma once
#include "packed.hpp"

namespace tinylm {

// y at strips first to last - 1, see Kernels::product.
void prompt_product(const Prompt& prompt, const float* bias, bool gelu, uint16_t* y, int first, int last, uint16_t* room);

namespace {

// All eight tiles are 16 rows of 64 bytes.
struct alignas(64) Tiles {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr Tiles kTiles{};

}  // namespace
}  // namespace tinylm
