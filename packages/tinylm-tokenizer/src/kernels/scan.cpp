// Cutting text into pieces: the border to Python. Only tests need it; the encoder and the trainer cut by themselves.
#include "scan.hpp"

#include <nanobind/stl/string_view.h>

#include "bindings.hpp"

namespace nb = nanobind;

namespace tinylm {
namespace {

// Where each piece of `text` ends, in bytes. reference: by `next_piece` alone.
Ids piece_ends(std::string_view name, std::string_view text, bool reference) {
    const std::optional<Pattern> pattern = pattern_named(name);
    if (!pattern) throw nb::value_error("unknown pattern");
    std::vector<uint32_t> ends;
    auto append = [&](std::string_view piece) { ends.push_back(uint32_t(piece.data() + piece.size() - text.data())); };
    if (reference)
        for_each_piece_reference(*pattern, text, append);
    else
        for_each_piece(*pattern, text, append);
    return to_numpy(std::move(ends));
}

}  // namespace

void bind_scan(nb::module_& module) {
    module.def("piece_ends", &piece_ends, nb::arg("pattern"), nb::arg("text"), nb::arg("reference") = false);
}

}  // namespace tinylm
