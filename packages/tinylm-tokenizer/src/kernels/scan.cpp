// Cutting text into pieces: the border to Python. Only tests need it; the encoder and the trainer cut by themselves.
#include "scan.hpp"

#include <nanobind/stl/optional.h>
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

// Whether the masks of 64 bytes are the same however they are made. None: this processor has only one way.
std::optional<bool> masks_agree(const nb::bytes& text) {
    if (text.size() != kWindow) throw nb::value_error("wanted 64 bytes");
#if defined(TINYLM_X86)
    const auto* bytes = reinterpret_cast<const uint8_t*>(text.c_str());
    if (kAvx512) return ascii_masks(bytes) == ascii_masks_at_once(bytes);
#endif
    return std::nullopt;
}

}  // namespace

void bind_scan(nb::module_& module) {
    module.def("masks_agree", &masks_agree);
    module.def("piece_ends", &piece_ends, nb::arg("pattern"), nb::arg("text"), nb::arg("reference") = false);
}

}  // namespace tinylm
