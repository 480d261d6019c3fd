// Training a Unigram vocabulary, and the counting that both SentencePiece trainers begin with: the border to Python.
// kernels/unigram.py says what the arguments are.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "sentencepiece_words.hpp"
#include "unigram_train.hpp"

namespace nb = nanobind;

namespace tinylm {
namespace {

namespace sp = sentencepiece;
using unigram_training::Trainer;

std::u32string code_points(nb::handle text) {
    const Py_ssize_t size = PyUnicode_GET_LENGTH(text.ptr());
    const int kind = PyUnicode_KIND(text.ptr());
    const void* data = PyUnicode_DATA(text.ptr());
    std::u32string out(size_t(size), U'\0');
    for (Py_ssize_t i = 0; i < size; i++) out[size_t(i)] = PyUnicode_READ(kind, data, i);
    return out;
}

nb::str to_str(std::u32string_view text) {
    PyObject* out = PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, text.data(), Py_ssize_t(text.size()));
    if (!out) throw nb::python_error();
    return nb::steal<nb::str>(out);
}

void add_text(sp::WordCounter& counter, const nb::str& text) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);  // raises UnicodeEncodeError for a lone surrogate
    if (!data) throw nb::python_error();
    nb::gil_scoped_release unlocked;
    counter.add({data, size_t(size)});
}

std::pair<nb::list, std::vector<int64_t>> counted_words(const sp::WordCounter& counter) {
    nb::list words;
    for (const std::string* word : counter.words.texts) {
        std::string real;
        for (const char c : *word) {
            if (c == ' ')
                real += "\xE2\x96\x81";
            else
                real += c == sp::kRealSpace ? ' ' : c;
        }
        words.append(nb::str(real.data(), real.size()));
    }
    return {words, counter.words.counts};
}

}  // namespace

void bind_unigram(nb::module_& module) {
    nb::class_<sp::WordCounter>(module, "WordCounter")
        .def("__init__",
             [](sp::WordCounter* self, const nb::bytes& charsmap, std::tuple<bool, bool, bool, bool> spaces) {
                 const auto [dummy_prefix, remove_extra, suffix, escape] = spaces;
                 new (self) sp::WordCounter({charsmap.c_str(), charsmap.size()},
                                            {dummy_prefix, remove_extra, suffix, escape});
             })
        .def("add", &add_text)
        .def("counts", &counted_words);
    nb::class_<Trainer>(module, "UnigramTrainer")
        .def("__init__",
             [](Trainer* self, const nb::list& runs, const std::vector<int64_t>& counts, size_t threads) {
                 std::vector<std::u32string> texts;
                 for (nb::handle run : runs) texts.push_back(code_points(run));
                 if (texts.size() != counts.size()) throw nb::value_error("wanted one count a run");
                 new (self) Trainer(texts, counts, threads);
             })
        .def("seed", &Trainer::seed, nb::call_guard<nb::gil_scoped_release>())
        .def("improve", &Trainer::improve, nb::call_guard<nb::gil_scoped_release>())
        .def("prune", &Trainer::prune, nb::call_guard<nb::gil_scoped_release>())
        .def("finish", &Trainer::finish, nb::call_guard<nb::gil_scoped_release>())
        .def("pieces", [](const Trainer& self) {
            nb::list out;
            for (size_t id = 0; id < self.size(); id++) out.append(nb::make_tuple(to_str(self.text(id)), self.score(id)));
            return out;
        });
}

}  // namespace tinylm
