// Learning byte-level merges: the border to Python. The readable version is byte_bpe_fast.py: train_merges.
#include "train.hpp"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"

namespace nb = nanobind;

namespace tinylm {
namespace {

Trainer make_trainer(const nb::list& pieces, std::vector<int64_t> counts, const std::vector<uint32_t>& byte_ids) {
    const std::vector<std::string_view> views = utf8(pieces);
    if (views.size() != counts.size() || byte_ids.size() != 256)
        throw nb::value_error("wanted one count a piece and 256 byte ids");
    nb::gil_scoped_release unlocked;
    std::vector<std::vector<uint32_t>> words;
    words.reserve(views.size());
    for (std::string_view piece : views) {
        std::vector<uint32_t>& word = words.emplace_back();
        word.reserve(piece.size());
        for (unsigned char byte : piece) word.push_back(byte_ids[byte]);
    }
    return Trainer(std::move(words), std::move(counts));
}

}  // namespace

void bind_training(nb::module_& module) {
    nb::class_<Trainer>(module, "Trainer").def("step", &Trainer::step, nb::call_guard<nb::gil_scoped_release>());
    module.def("make_trainer", &make_trainer);
}

}  // namespace tinylm
