// The compiled module tinylm.inference._kernels: the border to Python. What it offers is said in
// tinylm/inference/kernels/, the only Python code that imports it. Next: packed.hpp.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "packed.hpp"
#include "team.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace nb = nanobind;

namespace tinylm {
namespace {

using Floats2D = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bias = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Fastest first, of those that were compiled and that this processor has.
std::vector<const Kernels*> at_hand() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    if (kAvx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vnni"))
        found.push_back(kAvx512);
    if (kAvx2 && __builtin_cpu_supports("avx2")) found.push_back(kAvx2);  // no AVX2 without F16C was ever sold
#endif
    found.push_back(&kPortable);
    return found;
}

const Kernels* by_name(const std::string& name) {
    std::string names;
    for (const Kernels* kernels : at_hand()) {
        if (name == kernels->name) return kernels;
        names += (names.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw std::invalid_argument("wanted one of the instruction sets " + names + ", got " + name);
}

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

    Activations room(int tokens, const Packed& m) {
        const size_t count = size_t(tokens) * m.groups(), size = size_t(tokens) * m.padded_inputs();
        if (numbers.size() < size) numbers.resize(size);
        if (scales.size() < count) scales.resize(count), sums.resize(count);
        return {numbers.data(), scales.data(), sums.data(), tokens, m.padded_inputs(), m.groups()};
    }
};

class Matrix {
  public:
    Matrix(Bytes data, int outputs, int inputs, int bits, bool grouped, bool minima, std::optional<Bias> bias,
           const std::string& instruction_set)
        : data_(data), bias_(bias), kernels_(by_name(instruction_set)),
          packed_{data.data(), outputs, inputs, bits, grouped, minima} {
        if (outputs < 1 || inputs < 1 || (bits != 8 && bits != 4) || (bits == 4 && !grouped) ||
            (bits == 8 && minima))
            throw std::invalid_argument("a packed matrix has 8 bits without minima, or 4 bits in groups");
        if (packed_.bytes() != data.size())
            throw std::invalid_argument("wanted " + std::to_string(packed_.bytes()) + " bytes for this shape, got " +
                                        std::to_string(data.size()));
        if (bias && bias->size() != size_t(outputs)) throw std::invalid_argument("wanted a bias for each output");
    }

    // y = x Wᵀ + bias. x (tokens, inputs), y (tokens, outputs).
    void linear(Floats2D x, FloatsOut y, int threads) const {
        if (x.shape(1) != size_t(packed_.inputs) || y.shape(1) != size_t(packed_.outputs) ||
            x.shape(0) != y.shape(0))
            throw std::invalid_argument("wanted x (tokens, inputs) and y (tokens, outputs)");
        const nb::gil_scoped_release release;
        static thread_local Rounded rounded;
        const Activations a = rounded.room(int(x.shape(0)), packed_);
        kernels_->quantize(x.data(), packed_.inputs, a.tokens, a);
        const float* bias = bias_ ? bias_->data() : nullptr;
        const int blocks = packed_.blocks();
        auto part = [&](int thread, int of) {
            kernels_->linear(packed_, a, bias, y.data(), y.shape(1), int(int64_t(blocks) * thread / of),
                             int(int64_t(blocks) * (thread + 1) / of));
        };
        if (threads <= 1) return part(0, 1);
        static thread_local std::unique_ptr<Team> kept;
        if (!kept || kept->size() != threads) kept = std::make_unique<Team>(threads);
        kept->run([&part, of = kept->size()](int thread) { part(thread, of); });
    }

    const char* instruction_set() const { return kernels_->name; }

  private:
    Bytes data_;
    std::optional<Bias> bias_;
    const Kernels* kernels_;
    Packed packed_;
};

size_t packed_bytes(int outputs, int inputs, int bits, bool grouped, bool minima) {
    return Packed{nullptr, outputs, inputs, bits, grouped, minima}.bytes();
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernels* kernels : at_hand()) names.emplace_back(kernels->name);
    return names;
}

}  // namespace
}  // namespace tinylm

NB_MODULE(_kernels, module) {
    using namespace tinylm;
    module.doc() = "Compiled kernels; use tinylm.inference.kernels.";
    module.def("allocate", &allocate, nb::arg("bytes"));
    module.def("packed_bytes", &packed_bytes, nb::arg("outputs"), nb::arg("inputs"), nb::arg("bits"),
               nb::arg("grouped"), nb::arg("minima"));
    module.def("instruction_sets", &instruction_sets);
    nb::class_<Matrix>(module, "Matrix")
        .def(nb::init<Bytes, int, int, int, bool, bool, std::optional<Bias>, const std::string&>(), nb::arg("data"),
             nb::arg("outputs"), nb::arg("inputs"), nb::arg("bits"), nb::arg("grouped"), nb::arg("minima"),
             nb::arg("bias").none(), nb::arg("instruction_set"))
        .def("linear", &Matrix::linear, nb::arg("x"), nb::arg("y"), nb::arg("threads") = 1)
        .def_prop_ro("instruction_set", &Matrix::instruction_set);
}
