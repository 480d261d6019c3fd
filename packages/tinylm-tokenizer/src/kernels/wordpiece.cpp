// The Python face of wordpiece.hpp: a string comes in, a NumPy array goes out, and the GIL is free in between.
#include "wordpiece.hpp"

#include <nanobind/stl/vector.h>

#include "bindings.hpp"

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
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (!data) throw nb::python_error();
    IdBuffer ids(size_t(size) / 4 + 64);
    {
        nb::gil_scoped_release unlocked;
        self.encode({data, size_t(size)}, ids);
    }
    const size_t count = ids.size();
    uint32_t* kept = ids.release();
    return Ids(kept, {count}, nb::capsule(kept, [](void* pointer) noexcept { std::free(pointer); }));
}

}  // namespace

void bind_wordpiece(nb::module_& module) {
    nb::class_<WordPiece>(module, "WordPiece").def("__init__", &make).def("encode", &encode);
}

}  // namespace tinylm
