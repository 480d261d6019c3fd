// Whether a step stays within the memory of its cache: what comes from Python is checked before it is used.
#pragma once
#include <stdexcept>

#include "bindings.hpp"
#include "decoder.hpp"

namespace tinylm {

// Whether keys and values are bfloat16; else they are float.
inline bool is_bfloat16(const Memory& keys, const Memory& values) {
    const bool wide = keys.dtype() == nb::dtype<float>();
    if (keys.dtype() != values.dtype() || !(wide || keys.dtype() == nb::dtype<uint16_t>()))
        throw std::invalid_argument("wanted keys and values in float32, or both as the 16 bits of bfloat16");
    return !wide;
}

// That every place that a step reads or writes lies inside of keys and values.
inline void check_cache(const Step& step, const Memory& keys, const Memory& values, int64_t layers, int kv_heads, int head_dim) {
    const int64_t within = (layers - 1) * step.layer_stride + (kv_heads - 1) * step.head_stride +
                           (step.block_size - 1) * step.token_stride + head_dim;
    for (int s = 0; s < step.sequences; ++s) {
        const int64_t count = step.starts[s + 1] - step.starts[s], length = step.cached[s] + count;
        const int64_t needed = (length + step.block_size - 1) / step.block_size;
        if (count < 0 || step.cached[s] < 0 || needed > step.blocks_stride)
            throw std::invalid_argument("wanted room in the cache for all tokens");
        for (int64_t b = 0; b < needed; ++b) {
            const int64_t block = step.blocks[s * step.blocks_stride + b];
            const int64_t end = block * step.block_stride + within;
            if (block < 0 || end > int64_t(keys.size()) || end > int64_t(values.size()))
                throw std::invalid_argument("wanted blocks inside of the cache");
        }
    }
}

}  // namespace tinylm
