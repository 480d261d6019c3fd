// Matrices for Python: their bytes, packing, and the product with one of them alone. Next: bind_model.cpp.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>
#include <new>
#include <stdexcept>

#include "matrix.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace tinylm {
namespace {

// Memory in pages of 2 MB where the system has them: weights are read from end to end for each token, and with pages of
// 4 KB a third of the time went into looking up where they are.
constexpr size_t kHugePage = size_t(1) << 21;

nb::object allocate(size_t bytes) {
    const size_t whole = round_up(bytes ? bytes : 1, kHugePage);
    void* memory = ::operator new(whole, std::align_val_t(kHugePage), std::nothrow);
    if (!memory) throw std::bad_alloc();
#if defined(__linux__)
    madvise(memory, whole, MADV_HUGEPAGE);
#endif
    nb::capsule owner(memory, [](void* p) noexcept { ::operator delete(p, std::align_val_t(kHugePage)); });
    return nb::cast(nb::ndarray<uint8_t, nb::numpy, nb::ndim<1>>(memory, {bytes}, owner));
}

// Rounded activations and the memory under them; it only ever grows.
struct Rounded {
    std::vector<int8_t> numbers;
    std::vector<float> scales;
    std::vector<int32_t> sums;
    std::vector<uint16_t> columns;

    Activations room(const float* x, int tokens, const Packed& m) {
        const size_t count = size_t(tokens) * m.groups(), size = size_t(tokens) * m.padded_inputs();
        if (numbers.size() < size) numbers.resize(size);
        if (scales.size() < count) scales.resize(count), sums.resize(count);
        if (m.splits() && columns.size() < column_count(size_t(tokens), size_t(m.inputs)))
            columns.resize(column_count(size_t(tokens), size_t(m.inputs)));
        return {x, numbers.data(), scales.data(), sums.data(), columns.data(), tokens, m.padded_inputs(), m.groups()};
    }
};

size_t packed_bytes(int outputs, int inputs, int bits, bool grouped, bool minima) {
    return Packed{nullptr, outputs, inputs, bits, grouped, minima}.bytes();
}

void pack_into(Array<const int8_t, 2> numbers, Array<const uint16_t, 2> scales, std::optional<Array<const uint16_t, 2>> minima, int bits, bool grouped,
               Array<uint8_t, 1> out) {
    const Packed m{nullptr, int(numbers.shape(0)), int(numbers.shape(1)), bits, grouped, minima.has_value()};
    const size_t count = size_t(m.outputs) * m.groups();
    if (out.size() != m.bytes() || scales.size() != count || (minima && minima->size() != count))
        throw std::invalid_argument("wanted scales for each output and group, and bytes for all");
    const nb::gil_scoped_release release;
    pack(m, numbers.data(), scales.data(), minima ? minima->data() : nullptr, out.data());
}

}  // namespace

Matrix::Matrix(Array<const uint8_t, 1> data, int outputs, int inputs, int bits, bool grouped, bool minima,
               std::optional<Array<const float, 1>> bias,
       const std::string& instruction_set)
    : data_(data), bias_(bias), kernels_(by_name(instruction_set)),
      packed_{data.data(), outputs, inputs, bits, grouped, minima} {
    const bool plain = (bits == 32 || bits == 16) && !grouped && !minima;
    if (outputs < 1 || inputs < 1 || !(plain || (bits == 8 && !minima) || (bits == 4 && grouped)))
        throw std::invalid_argument(
            "a matrix has 32 or 16 bits, 8 bits without minima, or 4 bits in groups");
    if (packed_.bytes() != data.size())
        throw std::invalid_argument("wanted " + std::to_string(packed_.bytes()) + " bytes for this shape, got " +
                                    std::to_string(data.size()));
    if (bias && bias->size() != size_t(outputs)) throw std::invalid_argument("wanted a bias for each output");
}

void Matrix::linear(Array<const float, 2> x, Array<float, 2> y, int threads) const {
    if (x.shape(1) != size_t(packed_.inputs) || y.shape(1) != size_t(packed_.outputs) ||
        x.shape(0) != y.shape(0))
        throw std::invalid_argument("wanted x (tokens, inputs) and y (tokens, outputs)");
    const nb::gil_scoped_release release;
    static thread_local Rounded rounded;
    const Activations a = rounded.room(x.data(), int(x.shape(0)), packed_);
    if (!packed_.plain()) kernels_->quantize(x.data(), packed_.inputs, a.tokens, a);
    for (int t = 0; kernels_->split && packed_.splits() && t < a.tokens; ++t)
        kernels_->split(x.data() + size_t(t) * packed_.inputs, packed_.inputs, t, a.tokens, a.columns);
    const float* bias = bias_ ? bias_->data() : nullptr;
    const int blocks = packed_.blocks();
    Team& team = team_of(threads);
    team.run([&](int thread) {
        kernels_->linear(packed_, a, bias, y.data(), y.shape(1), int(int64_t(blocks) * thread / team.size()),
                         int(int64_t(blocks) * (thread + 1) / team.size()), false);
    });
}

bool Matrix::takes_prompts() const { return kernels_->product && packed_.splits(); }

void Matrix::product(Array<const uint16_t, 2> x, Array<uint16_t, 2> y, bool gelu, int threads) const {
    if (!takes_prompts()) throw std::invalid_argument("wanted a bfloat16 matrix of at least 16 outputs and a multiple of 32 inputs, and instructions that multiply bfloat16");
    if (x.shape(1) != size_t(packed_.inputs) || y.shape(1) != size_t(packed_.outputs) || x.shape(0) != y.shape(0))
        throw std::invalid_argument("wanted x (tokens, inputs) and y (tokens, outputs)");
    const nb::gil_scoped_release release;
    const Prompt prompt{x.data(), reinterpret_cast<const uint16_t*>(packed_.data), int(x.shape(0)), packed_.inputs,
                        packed_.outputs};
    const int64_t strips = prompt.strips();
    Team& team = team_of(threads);
    team.run([&](int thread) {
        static thread_local std::vector<uint16_t> kept;  // strip and last tokens; it only ever grows
        uint16_t* room = aligned(kept, prompt.room());
        kernels_->product(prompt, bias_ ? bias_->data() : nullptr, gelu, y.data(), int(strips * thread / team.size()),
                          int(strips * (thread + 1) / team.size()), room);
    });
}

void bind_matrix(nb::module_& module) {
    module.def("allocate", &allocate, nb::arg("bytes"));
    module.def("packed_bytes", &packed_bytes, nb::arg("outputs"), nb::arg("inputs"), nb::arg("bits"),
               nb::arg("grouped"), nb::arg("minima"));
    module.def("pack", &pack_into, nb::arg("numbers"), nb::arg("scales"), nb::arg("minima").none(), nb::arg("bits"),
               nb::arg("grouped"), nb::arg("out"));
    nb::class_<Matrix>(module, "Matrix")
        .def(nb::init<Array<const uint8_t, 1>, int, int, int, bool, bool, std::optional<Array<const float, 1>>, const std::string&>(), nb::arg("data"),
             nb::arg("outputs"), nb::arg("inputs"), nb::arg("bits"), nb::arg("grouped"), nb::arg("minima"),
             nb::arg("bias").none(), nb::arg("instruction_set"))
        .def("linear", &Matrix::linear, nb::arg("x"), nb::arg("y"), nb::arg("threads") = 1)
        .def("product", &Matrix::product, nb::arg("x"), nb::arg("y"), nb::arg("gelu"), nb::arg("threads"))
        .def_prop_ro("takes_prompts", &Matrix::takes_prompts)
        .def_prop_ro("instruction_set", &Matrix::instruction_set);
}

}  // namespace tinylm
