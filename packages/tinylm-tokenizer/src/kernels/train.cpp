// Learning byte-level merges: the border to Python. The readable version is byte_bpe_fast.py: train_merges.
#include "train.hpp"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"

namespace nb = nanobind;

namespace tinylm {
namespace {

// Lets Ctrl-C end a long loop: raises what a signal handler raised.
void check_signals() {
    nb::gil_scoped_acquire locked;
    if (PyErr_CheckSignals()) throw nb::python_error();
}

Trainer make_trainer(const nb::list& pieces, const std::vector<int64_t>& counts, const std::vector<uint32_t>& byte_ids,
                     size_t wanted) {
    const std::vector<std::string_view> views = utf8(pieces);
    if (views.size() != counts.size() || byte_ids.size() != 256)
        throw nb::value_error("wanted one count a piece and 256 byte ids");
    nb::gil_scoped_release unlocked;
    auto for_each = [&](auto&& call) {
        for (size_t i = 0; i < views.size(); i++) call(views[i], counts[i]);
    };
    return Trainer(for_each, byte_ids, wanted, check_signals);
}

}  // namespace

void bind_training(nb::module_& module) {
    nb::class_<Trainer>(module, "Trainer").def("step", &Trainer::step, nb::call_guard<nb::gil_scoped_release>());
    module.def("make_trainer", &make_trainer);
}

}  // namespace tinylm
