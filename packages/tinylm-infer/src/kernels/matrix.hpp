// A matrix that Python holds, and through which the model reads its weights. Next: bind_matrix.cpp.
#pragma once
#include <optional>
#include <string>

#include "bindings.hpp"
#include "decoder.hpp"

namespace tinylm {

class Matrix {
  public:
    Matrix(Array<const uint8_t, 1> data, int outputs, int inputs, int bits, bool grouped, bool minima,
           std::optional<Array<const float, 1>> bias, const std::string& instruction_set);

    // y = x Wᵀ + bias. x (tokens, inputs), y (tokens, outputs).
    void linear(Array<const float, 2> x, Array<float, 2> y, int threads) const;

    // Whether `product` works: bfloat16 that splits(), where there are instructions for it.
    bool takes_prompts() const;

    // y = x Wᵀ + bias, then GELU if wanted; all bfloat16, x (tokens, inputs), y (tokens, outputs).
    void product(Array<const uint16_t, 2> x, Array<uint16_t, 2> y, bool gelu, int threads) const;

    const char* instruction_set() const { return kernels_->name; }
    Projection projection() const { return {packed_, bias_ ? bias_->data() : nullptr}; }

  private:
    Array<const uint8_t, 1> data_;
    std::optional<Array<const float, 1>> bias_;
    const Kernels* kernels_;
    Packed packed_;
};

}  // namespace tinylm
