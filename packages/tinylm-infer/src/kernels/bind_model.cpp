// The whole model for Python: checks what a step is given, then lets `Decoder` run. Next: decoder.hpp.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <mutex>
#include <optional>
#include <stdexcept>
#include <utility>

#include "cache_check.hpp"
#include "matrix.hpp"

namespace tinylm {
namespace {

using Numbers = AnyArray<const float>;
using NormPair = std::pair<std::optional<Numbers>, std::optional<Numbers>>;  // weight and bias

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
                 std::vector<int64_t> strides, int64_t block_size, Places rows, Array<float, 2> logits, int threads) {
        const Shape& shape = decoder_.shape;
        const Step step{int(ids.size()), int(cached.size()), ids.data(), positions.data(), starts.data(),
                        cached.data(), blocks.data(), int64_t(blocks.shape(1)), keys.data(), values.data(),
                        is_bfloat16(keys, values), strides.at(0), strides.at(1), strides.at(2), strides.at(3), block_size, rows.data(),
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

}  // namespace

void bind_model(nb::module_& module) {
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

}  // namespace tinylm
