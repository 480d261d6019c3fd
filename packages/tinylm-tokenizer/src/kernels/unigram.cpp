// Training a Unigram vocabulary, and the counting that both SentencePiece trainers begin with: the border to Python.
// kernels/sentencepiece_training.py says what the arguments are.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "sentencepiece_train.hpp"
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

sp::Classes to_classes(const nb::str& characters, const std::vector<uint16_t>& types) {
    sp::Classes classes;
    const std::u32string points = code_points(characters);
    for (size_t i = 0; i < points.size(); i++) classes.set(points[i], types.at(i));
    return classes;
}

// The distinct runs of the words, with their counts.
struct Runs {
    Runs(const nb::list& words, const std::vector<int64_t>& word_counts, const sp::Classes& classes) {
        if (nb::len(words) != word_counts.size()) throw nb::value_error("wanted one count a word");
        sp::Counter<std::u32string> counter;
        std::u32string run;
        for (size_t i = 0; i < word_counts.size(); i++)
            classes.cut(code_points(words[i]), [&](std::u32string_view part) {
                run.assign(part);
                counter.add(run, word_counts[i]);
            });
        for (const std::u32string* text : counter.texts) texts.push_back(*text);
        counts = std::move(counter.counts);
    }

    std::vector<std::u32string> texts;
    std::vector<int64_t> counts;
};

void add_text(sp::WordCounter& counter, const nb::str& text) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);  // raises UnicodeEncodeError for a lone surrogate
    if (!data) throw nb::python_error();
    nb::gil_scoped_release unlocked;
    counter.add({data, size_t(size)});
}

nb::list characters(const sp::WordCounter& counter) {
    const sp::Counter<std::string> found = counter.characters();
    nb::list out;
    for (size_t i = 0; i < found.counts.size(); i++) {
        const std::string_view real = sp::WordCounter::to_real(*found.texts[i]);
        out.append(nb::make_tuple(nb::str(real.data(), real.size()), found.counts[i]));
    }
    return out;
}

nb::list covered(const sp::WordCounter& counter, const nb::list& kept) {
    std::vector<std::string> internal;
    for (std::string_view character : utf8(kept)) internal.push_back(sp::to_internal(character));
    std::vector<std::pair<std::string, int64_t>> words;
    {
        nb::gil_scoped_release unlocked;
        words = counter.covered(internal);
    }
    nb::list out;
    for (const auto& [word, count] : words) out.append(nb::make_tuple(nb::str(word.data(), word.size()), count));
    return out;
}

}  // namespace

void bind_unigram(nb::module_& module) {
    nb::class_<sp::WordCounter>(module, "WordCounter")
        .def("__init__",
             [](sp::WordCounter* self, const nb::bytes& charsmap, std::tuple<bool, bool, bool, bool> spaces,
                const nb::list& apart) {
                 const auto [dummy_prefix, remove_extra, suffix, escape] = spaces;
                 sp::Trie::Keys keys;
                 for (std::string_view text : utf8(apart)) keys.emplace_back(sp::to_internal(text), 0);
                 new (self) sp::WordCounter({charsmap.c_str(), charsmap.size()},
                                            {dummy_prefix, remove_extra, suffix, escape}, std::move(keys));
             })
        .def("add", &add_text)
        .def_prop_ro("distinct", &sp::WordCounter::distinct)
        .def_prop_ro("bytes", &sp::WordCounter::bytes)
        .def("characters", &characters)
        .def("covered", &covered);
    nb::class_<sp::BpeTrainer>(module, "SentencePieceBpeTrainer")
        .def("__init__",
             [](sp::BpeTrainer* self, const nb::list& words, const std::vector<int64_t>& counts,
                const nb::str& characters, const std::vector<uint16_t>& types, size_t longest) {
                 const sp::Classes classes = to_classes(characters, types);
                 const Runs runs(words, counts, classes);
                 nb::gil_scoped_release unlocked;
                 new (self) sp::BpeTrainer(runs.texts, runs.counts, classes, longest);
             })
        .def("step", [](sp::BpeTrainer& self, size_t most) {
            std::vector<std::u32string> pieces;
            {
                nb::gil_scoped_release unlocked;
                pieces = self.step(most);
            }
            nb::list out;
            for (const std::u32string& piece : pieces) out.append(to_str(piece));
            return out;
        });
    nb::class_<Trainer>(module, "UnigramTrainer")
        .def("__init__",
             [](Trainer* self, const nb::list& words, const std::vector<int64_t>& counts, const nb::str& characters,
                const std::vector<uint16_t>& types, size_t longest, size_t threads) {
                 std::vector<std::u32string> texts;
                 for (nb::handle word : words) texts.push_back(code_points(word));
                 if (texts.size() != counts.size()) throw nb::value_error("wanted one count a word");
                 new (self) Trainer(texts, counts, to_classes(characters, types), longest, threads);
             })
        .def("seed", &Trainer::seed, nb::call_guard<nb::gil_scoped_release>())
        .def("improve", &Trainer::improve, nb::call_guard<nb::gil_scoped_release>())
        .def("prune", &Trainer::prune, nb::call_guard<nb::gil_scoped_release>())
        .def("choose", [](Trainer& self, const nb::str& characters, size_t room) {
            const std::u32string points = code_points(characters);
            Trainer::Scored chosen;
            {
                nb::gil_scoped_release unlocked;
                chosen = self.choose(points, room);
            }
            nb::list out;
            for (const auto& [text, score] : chosen) out.append(nb::make_tuple(to_str(text), score));
            return out;
        });
}

}  // namespace tinylm
