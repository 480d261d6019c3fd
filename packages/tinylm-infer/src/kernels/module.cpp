// The compiled module tinylm.inference._kernels: the border to Python. What it offers is said in
// tinylm/inference/kernels/, the only Python code that imports it. Next: packed.hpp.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "decoder.hpp"
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

    Activations room(const float* x, int tokens, const Packed& m) {
        const size_t count = size_t(tokens) * m.groups(), size = size_t(tokens) * m.padded_inputs();
        if (numbers.size() < size) numbers.resize(size);
        if (scales.size() < count) scales.resize(count), sums.resize(count);
        return {x, numbers.data(), scales.data(), sums.data(), tokens, m.padded_inputs(), m.groups()};
    }
};

// The calling thread's own team.
Team& team_of(int threads) {
    static thread_local std::unique_ptr<Team> kept;
    if (!kept || kept->size() != std::max(threads, 1)) kept = std::make_unique<Team>(threads);
    return *kept;
}

class Matrix {
  public:
    Matrix(Bytes data, int outputs, int inputs, int bits, bool grouped, bool minima, std::optional<Bias> bias,
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

    // y = x Wᵀ + bias. x (tokens, inputs), y (tokens, outputs).
    void linear(Floats2D x, FloatsOut y, int threads) const {
        if (x.shape(1) != size_t(packed_.inputs) || y.shape(1) != size_t(packed_.outputs) ||
            x.shape(0) != y.shape(0))
            throw std::invalid_argument("wanted x (tokens, inputs) and y (tokens, outputs)");
        const nb::gil_scoped_release release;
        static thread_local Rounded rounded;
        const Activations a = rounded.room(x.data(), int(x.shape(0)), packed_);
        if (!packed_.plain()) kernels_->quantize(x.data(), packed_.inputs, a.tokens, a);
        const float* bias = bias_ ? bias_->data() : nullptr;
        const int blocks = packed_.blocks();
        Team& team = team_of(threads);
        team.run([&](int thread) {
            kernels_->linear(packed_, a, bias, y.data(), y.shape(1), int(int64_t(blocks) * thread / team.size()),
                             int(int64_t(blocks) * (thread + 1) / team.size()), false);
        });
    }

    const char* instruction_set() const { return kernels_->name; }
    Projection projection() const { return {packed_, bias_ ? bias_->data() : nullptr}; }

  private:
    Bytes data_;
    std::optional<Bias> bias_;
    const Kernels* kernels_;
    Packed packed_;
};

using Numbers = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Places = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tables = nb::ndarray<const int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Memory = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using NormPair = std::pair<std::optional<Numbers>, std::optional<Numbers>>;  // weight and bias

// That every place that a step reads or writes lies inside of keys and values.
void check_cache(const Step& step, const Memory& keys, const Memory& values, int64_t layers, int kv_heads, int head_dim) {
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

// `Decoder` with the Python objects that its pointers point into.
class Model {
  public:
    Model(const Shape& shape, const Matrix& embedding, std::optional<Numbers> learned_positions, std::optional<Numbers> cos,
          std::optional<Numbers> sin, const std::string& instruction_set) {
        decoder_.shape = shape;
        decoder_.kernels = by_name(instruction_set);
        decoder_.embedding = keep(&embedding, shape.vocabulary, shape.width).matrix;
        if (!decoder_.embedding.plain()) throw std::invalid_argument("wanted an embedding in 32 or 16 bits");
        context_ = cos ? cos->shape(0) : (learned_positions ? learned_positions->shape(0) : 0);
        decoder_.learned_positions = keep(learned_positions, context_ * shape.width);
        decoder_.cos = keep(cos, context_ * (shape.head_dim / 2));
        decoder_.sin = keep(sin, context_ * (shape.head_dim / 2));
    }

    void add_layer(const std::vector<NormPair>& norms, const std::vector<const Matrix*>& matrices, int64_t window) {
        const Shape& s = decoder_.shape;
        if (norms.size() != 4 || matrices.size() != 7) throw std::invalid_argument("wanted 4 norms and 7 matrices");
        const int queries = s.heads * s.head_dim, keys = s.kv_heads * s.head_dim;
        decoder_.layers.push_back({norm(norms[0], s.width), norm(norms[1], s.head_dim), norm(norms[2], s.head_dim),
                                   norm(norms[3], s.width), keep(matrices[0], queries, s.width),
                                   keep(matrices[1], keys, s.width), keep(matrices[2], keys, s.width),
                                   keep(matrices[3], s.width, queries), keep(matrices[4], s.mlp_width, s.width),
                                   keep(matrices[5], s.mlp_width, s.width), keep(matrices[6], s.width, s.mlp_width),
                                   window});
    }

    void set_end(const NormPair& final_norm, const Matrix* head) {
        decoder_.final_norm = norm(final_norm, decoder_.shape.width);
        decoder_.head = keep(head, decoder_.shape.vocabulary, decoder_.shape.width);
    }

    // Logits of the tokens `rows`. See Step for the rest; keys and values are one tensor each, strides in floats.
    void forward(Places ids, Places positions, Places starts, Places cached, Tables blocks, Memory keys, Memory values,
                 std::vector<int64_t> strides, int64_t block_size, Places rows, FloatsOut logits, int threads) {
        const Shape& shape = decoder_.shape;
        const Step step{int(ids.size()), int(cached.size()), ids.data(), positions.data(), starts.data(),
                        cached.data(), blocks.data(), int64_t(blocks.shape(1)), keys.data(), values.data(),
                        strides.at(0), strides.at(1), strides.at(2), strides.at(3), block_size, rows.data(),
                        int(rows.size()), logits.data()};
        if (!decoder_.head.matrix.data) throw std::invalid_argument("wanted set_end before forward");
        if (positions.size() != ids.size() || starts.size() != cached.size() + 1 ||
            blocks.shape(0) != cached.size() || starts.data()[0] != 0 ||
            starts.data()[cached.size()] != int64_t(ids.size()) || block_size < 1)
            throw std::invalid_argument("wanted a position for each id, and a start, a length and blocks for each sequence");
        check(ids, shape.vocabulary, "ids");
        check(positions, int64_t(context_), "positions");
        check(rows, step.tokens, "rows");
        if (logits.shape(0) != rows.size() || logits.shape(1) != size_t(shape.vocabulary))
            throw std::invalid_argument("wanted logits (rows, vocabulary)");
        check_cache(step, keys, values, int64_t(decoder_.layers.size()), shape.kv_heads, shape.head_dim);
        const nb::gil_scoped_release release;
        const std::lock_guard lock(mutex_);  // the rows between the layers are the decoder's
        decoder_.forward(step, team_of(threads));
    }

  private:
    static void check(const Places& values, int64_t end, const char* what) {
        for (size_t i = 0; i < values.size(); ++i)
            if (values.data()[i] < 0 || values.data()[i] >= end)
                throw std::invalid_argument(std::string("wanted ") + what + " from 0 to " + std::to_string(end - 1));
    }

    const float* keep(const std::optional<Numbers>& numbers, size_t size) {
        if (!numbers) return nullptr;
        if (numbers->size() != size) throw std::invalid_argument("wanted " + std::to_string(size) + " numbers");
        kept_.push_back(*numbers);
        return numbers->data();
    }

    Norm norm(const NormPair& pair, int size) {
        return {keep(pair.first, size_t(size)), keep(pair.second, size_t(size))};
    }

    Projection keep(const Matrix* matrix, int outputs, int inputs) {
        if (!matrix) return {};
        const Projection out = matrix->projection();
        if (out.matrix.outputs != outputs || out.matrix.inputs != inputs)
            throw std::invalid_argument("wanted a matrix of another shape");
        matrices_.push_back(*matrix);
        return out;
    }

    Decoder decoder_{};
    size_t context_ = 0;
    std::mutex mutex_;
    std::vector<Numbers> kept_;
    std::vector<Matrix> matrices_;
};

using Queries = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Attended = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

// Attention of a step's tokens (tokens, heads, size) in one layer, whose keys and values are in the cache already.
void attend_step(Queries q, Places starts, Places cached, Tables blocks, Memory keys, Memory values,
                 std::vector<int64_t> strides, int64_t block_size, int kv_heads, int64_t layer, int64_t window,
                 Attended out, const std::string& instruction_set, int threads) {
    const Heads of{int(q.shape(1)), kv_heads, int(q.shape(2))};
    const Step step{int(q.shape(0)), int(cached.size()), nullptr, nullptr, starts.data(), cached.data(), blocks.data(),
                    int64_t(blocks.shape(1)), keys.data(), values.data(), strides.at(0), strides.at(1), strides.at(2),
                    strides.at(3), block_size, nullptr, 0, nullptr};
    if (q.size() != out.size() || starts.size() != cached.size() + 1 || blocks.shape(0) != cached.size() ||
        starts.data()[0] != 0 || starts.data()[cached.size()] != int64_t(q.shape(0)) || block_size < 1 ||
        kv_heads < 1 || of.heads % kv_heads || layer < 0)
        throw std::invalid_argument("wanted q and out (tokens, heads, size), and a start, a length and blocks for each sequence");
    check_cache(step, keys, values, layer + 1, kv_heads, of.size);
    const Kernels* kernels = by_name(instruction_set);
    const nb::gil_scoped_release release;
    std::vector<int> sequence(size_t(step.tokens));
    int64_t longest = 0;
    for (int s = 0; s < step.sequences; ++s) {
        longest = std::max(longest, step.cached[s] + step.starts[s + 1] - step.starts[s]);
        std::fill(sequence.begin() + step.starts[s], sequence.begin() + step.starts[s + 1], s);
    }
    Team& team = team_of(threads);
    std::vector<std::vector<float>> scores(size_t(team.size()), std::vector<float>(size_t(longest)));
    team.run([&](int thread) {
        const int64_t items = int64_t(step.tokens) * of.heads;
        for (int64_t item = items * thread / team.size(); item < items * (thread + 1) / team.size(); ++item)
            attend_one(*kernels, step, of, layer, window, sequence[size_t(item % step.tokens)], int(item), q.data(),
                       out.data(), scores[size_t(thread)].data());
    });
}

size_t packed_bytes(int outputs, int inputs, int bits, bool grouped, bool minima) {
    return Packed{nullptr, outputs, inputs, bits, grouped, minima}.bytes();
}

using Signed2D = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Halves2D = nb::ndarray<const uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using BytesOut = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void pack_into(Signed2D numbers, Halves2D scales, std::optional<Halves2D> minima, int bits, bool grouped,
               BytesOut out) {
    const Packed m{nullptr, int(numbers.shape(0)), int(numbers.shape(1)), bits, grouped, minima.has_value()};
    const size_t count = size_t(m.outputs) * m.groups();
    if (out.size() != m.bytes() || scales.size() != count || (minima && minima->size() != count))
        throw std::invalid_argument("wanted scales for each output and group, and bytes for all");
    const nb::gil_scoped_release release;
    pack(m, numbers.data(), scales.data(), minima ? minima->data() : nullptr, out.data());
}

using FloatsIn = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using BrainFloats = nb::ndarray<uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// GELU in place: float32, or bfloat16 as its 16 bits. Threads take equal parts.
template <class Array>
void gelu(Array x, const std::string& instruction_set, int threads) {
    const Kernels* kernels = by_name(instruction_set);
    const nb::gil_scoped_release release;
    Team& team = team_of(threads);
    const int64_t size = int64_t(x.size());
    team.run([&](int thread) {
        const int64_t first = size * thread / team.size(), count = size * (thread + 1) / team.size() - first;
        if constexpr (std::is_same_v<Array, BrainFloats>)
            kernels->gelu_bfloat16(x.data() + first, count);
        else
            for (int64_t i = 0; i < count; i += 1 << 20)
                kernels->activate(nullptr, x.data() + first + i, int(std::min<int64_t>(count - i, 1 << 20)));
    });
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
    module.def("pack", &pack_into, nb::arg("numbers"), nb::arg("scales"), nb::arg("minima").none(), nb::arg("bits"),
               nb::arg("grouped"), nb::arg("out"));
    module.def("instruction_sets", &instruction_sets);
    module.def("gelu", &gelu<FloatsIn>, nb::arg("x"), nb::arg("instruction_set"), nb::arg("threads"));
    module.def("gelu", &gelu<BrainFloats>, nb::arg("x"), nb::arg("instruction_set"), nb::arg("threads"));
    module.def("attend", &attend_step, nb::arg("q"), nb::arg("starts"), nb::arg("cached"), nb::arg("blocks"),
               nb::arg("keys"), nb::arg("values"), nb::arg("strides"), nb::arg("block_size"), nb::arg("kv_heads"),
               nb::arg("layer"), nb::arg("window"), nb::arg("out"), nb::arg("instruction_set"), nb::arg("threads"));
    nb::class_<Matrix>(module, "Matrix")
        .def(nb::init<Bytes, int, int, int, bool, bool, std::optional<Bias>, const std::string&>(), nb::arg("data"),
             nb::arg("outputs"), nb::arg("inputs"), nb::arg("bits"), nb::arg("grouped"), nb::arg("minima"),
             nb::arg("bias").none(), nb::arg("instruction_set"))
        .def("linear", &Matrix::linear, nb::arg("x"), nb::arg("y"), nb::arg("threads") = 1)
        .def_prop_ro("instruction_set", &Matrix::instruction_set);
    nb::class_<Model>(module, "Model")
        .def("__init__",
             [](Model* self, int width, int heads, int kv_heads, int head_dim, int mlp_width, int vocabulary, float eps,
                const Matrix& embedding, std::optional<Numbers> learned_positions, std::optional<Numbers> cos,
                std::optional<Numbers> sin, const std::string& instruction_set) {
                 new (self) Model({width, heads, kv_heads, head_dim, mlp_width, vocabulary, eps}, embedding,
                                  learned_positions, cos, sin, instruction_set);
             }, nb::kw_only(), nb::arg("width"), nb::arg("heads"), nb::arg("kv_heads"), nb::arg("head_dim"),
             nb::arg("mlp_width"), nb::arg("vocabulary"), nb::arg("eps"), nb::arg("embedding"),
             nb::arg("learned_positions").none(), nb::arg("cos").none(), nb::arg("sin").none(),
             nb::arg("instruction_set"))
        .def("add_layer", &Model::add_layer, nb::arg("norms"), nb::arg("matrices"), nb::arg("window"))
        .def("set_end", &Model::set_end, nb::arg("final_norm"), nb::arg("head"))
        .def("forward", &Model::forward, nb::arg("ids"), nb::arg("positions"), nb::arg("starts"), nb::arg("cached"),
             nb::arg("blocks"), nb::arg("keys"), nb::arg("values"), nb::arg("strides"), nb::arg("block_size"),
             nb::arg("rows"), nb::arg("logits"), nb::arg("threads"));
}
