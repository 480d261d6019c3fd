// WordPiece: the border to Python. kernels/wordpiece.py and kernels/wordpiece_training.py say what the arguments are.
#include "wordpiece.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "wordpiece_train.hpp"

namespace nb = nanobind;

namespace tinylm {

namespace {

// rows: first code point, last code point, kind | combining class << 3; the later row wins. codes[i] becomes strings[i].
CharacterTable make_characters(const std::vector<std::vector<uint32_t>>& rows, const std::vector<uint32_t>& codes,
                               const nb::list& strings) {
    CharacterTable characters;
    for (const std::vector<uint32_t>& row : rows) {
        if (row.size() != 3 || row[1] > 0x10FFFF) throw nb::value_error("wanted rows of first, last, kind");
        for (uint32_t code = row[0]; code <= row[1]; code++) characters.set(code, row[2]);
    }
    const std::vector<std::string_view> becomes = utf8(strings);
    if (codes.size() != becomes.size()) throw nb::value_error("wanted one string a code point");
    for (size_t i = 0; i < codes.size(); i++) {
        if (codes[i] > 0x10FFFF || becomes[i].size() > 255) throw nb::value_error("wanted a code point");
        characters.map(codes[i], becomes[i]);
    }
    return characters;
}

void make(WordPiece* self, const nb::list& tokens, const std::vector<uint32_t>& ids, uint32_t unknown, size_t longest,
          bool lower, const std::vector<std::vector<uint32_t>>& rows, const std::vector<uint32_t>& codes,
          const nb::list& strings) {
    const std::vector<std::string_view> views = utf8(tokens);
    if (views.size() != ids.size()) throw nb::value_error("wanted one id a token");
    new (self) WordPiece(views, ids, unknown, longest, lower, make_characters(rows, codes, strings));
}

Ids encode(const WordPiece& self, nb::str text) {
    const WholeUtf8 utf8 = whole_utf8(text);
    IdArray ids(utf8.view().size() / 2 + 64);  // what is not used costs nothing, growing does
    {
        nb::gil_scoped_release unlocked;
        self.encode(utf8.view(), ids);
    }
    const size_t count = ids.size();
    uint32_t* kept = ids.release();
    return Ids(kept, {count}, nb::capsule(kept, [](void* pointer) noexcept { std::free(pointer); }));
}

void make_counts(WordCounts* self, bool lower, const std::vector<std::vector<uint32_t>>& rows,
                 const std::vector<uint32_t>& codes, const nb::list& strings) {
    new (self) WordCounts(make_characters(rows, codes, strings), lower);
}

// chunks: (UTF-8 bytes, where to stop, whether to check that the bytes are text). Returns the number of chunks, or the
// number of the first one that is no text.
size_t count(WordCounts& self, const std::vector<std::tuple<nb::bytes, size_t, bool>>& chunks) {
    nb::gil_scoped_release unlocked;
    for (size_t i = 0; i < chunks.size(); i++) {
        const auto& [bytes, stop, check] = chunks[i];
        const std::string_view text(bytes.c_str(), bytes.size());
        if (check && first_not_text(text) != text.size()) return i;
        self.count(text.substr(0, stop));
    }
    return chunks.size();
}

// Empties the counter.
std::unique_ptr<WordPieceTrainer> trainer(WordCounts& self, size_t most) {
    nb::gil_scoped_release unlocked;
    return std::make_unique<WordPieceTrainer>(self.take(), most);
}

}  // namespace

void bind_wordpiece(nb::module_& module) {
    nb::class_<WordPiece>(module, "WordPiece")
        .def("__init__", &make)
        .def("encode", &encode)
        .def("after_fork", &WordPiece::after_fork);
    nb::class_<WordPieceTrainer>(module, "WordPieceTrainer")
        .def_prop_ro("alphabet", &WordPieceTrainer::alphabet)
        .def("step", &WordPieceTrainer::step, nb::call_guard<nb::gil_scoped_release>());
    nb::class_<WordCounts>(module, "WordCounts")
        .def("__init__", &make_counts)
        .def("count", &count)
        .def("absorb", &WordCounts::absorb, nb::call_guard<nb::gil_scoped_release>())
        .def("trainer", &trainer)
        .def_prop_ro("distinct", [](const WordCounts& self) { return self.counts().distinct(); })
        .def_prop_ro("word_bytes", [](const WordCounts& self) { return self.counts().piece_bytes(); });
}

}  // namespace tinylm
