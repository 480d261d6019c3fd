// What the .cpp files that bind the kernels to Python share. Each algorithm has a bind_NAME function in a file of its
// own; module.cpp calls them all.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "utf8_text.hpp"

namespace tinylm {

void bind_byte_bpe(nanobind::module_& module);
void bind_rank_files(nanobind::module_& module);
void bind_scan(nanobind::module_& module);
void bind_training(nanobind::module_& module);
void bind_unigram(nanobind::module_& module);
void bind_sentencepiece(nanobind::module_& module);
void bind_wordpiece(nanobind::module_& module);

using Ids = nanobind::ndarray<nanobind::numpy, uint32_t, nanobind::ndim<1>>;

// The UTF-8 bytes of each string in a list. They belong to the strings, which the list keeps alive; for ASCII text
// nothing is copied. Raises UnicodeEncodeError for a lone surrogate.
inline std::vector<std::string_view> utf8(const nanobind::list& strings) {
    std::vector<std::string_view> views;
    views.reserve(nanobind::len(strings));
    for (nanobind::handle string : strings) {
        Py_ssize_t size = 0;
        const char* data = PyUnicode_AsUTF8AndSize(string.ptr(), &size);
        if (!data) throw nanobind::python_error();
        views.emplace_back(data, size_t(size));
    }
    return views;
}

[[noreturn]] inline void raise_lone_surrogate(PyObject* text) {  // as Python itself says it
    nanobind::steal<nanobind::object>(PyUnicode_AsUTF8String(text));
    throw nanobind::python_error();
}

inline WholeUtf8 whole_utf8(const nanobind::str& text) {
    try {
        return WholeUtf8(text.ptr());
    } catch (const LoneSurrogate&) {
        raise_lone_surrogate(text.ptr());
    }
}

inline Ids to_numpy(std::vector<uint32_t> ids) {
    auto* kept = new std::vector<uint32_t>(std::move(ids));
    nanobind::capsule owner(kept,
                            [](void* pointer) noexcept { delete static_cast<std::vector<uint32_t>*>(pointer); });
    return Ids(kept->data(), {kept->size()}, owner);
}

}  // namespace tinylm
