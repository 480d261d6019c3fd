// SentencePiece-BPE and Unigram encoding: the border to Python. kernels/sentencepiece.py says what the arguments are.
#include "sentencepiece.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"

namespace nb = nanobind;

namespace tinylm {
namespace {

namespace sp = sentencepiece;
using Rules = nb::ndarray<const uint32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

sp::Trie::Keys keys(const nb::list& symbols, const std::vector<uint32_t>& ids, bool internal) {
    sp::Trie::Keys out;
    const std::vector<std::string_view> texts = utf8(symbols);
    for (size_t i = 0; i < texts.size(); i++)
        out.emplace_back(internal ? sp::to_internal(texts[i]) : std::string(texts[i]), ids.at(i));
    return out;
}

class SentencePieceEncoder {
  public:
    SentencePieceEncoder(const nb::list& pieces, const std::vector<double>& scores, double unknown_score,
                         std::optional<Rules> merges, bool bpe, bool words, bool fuse_unknown, bool in_double,
                         std::optional<uint32_t> unknown_id, const std::vector<uint32_t>& byte_ids,
                         const nb::list& symbols, const std::vector<uint32_t>& symbol_ids, bool normalizes,
                         const nb::bytes& charsmap, std::tuple<bool, bool, bool, bool> spaces) {
        std::vector<std::string> texts;
        for (std::string_view piece : utf8(pieces)) texts.push_back(sp::to_internal(piece));
        sp::Options options{bpe, words, fuse_unknown, in_double, unknown_id, {}};
        if (byte_ids.size() == 256) std::copy(byte_ids.begin(), byte_ids.end(), options.byte_ids.emplace().begin());
        std::optional<sp::Normalizer> normalizer;
        if (normalizes) {
            const auto [dummy_prefix, remove_extra, suffix, escape] = spaces;
            normalizer.emplace(std::string_view(charsmap.c_str(), charsmap.size()),
                               sp::SpaceRules{dummy_prefix, remove_extra, suffix, escape},
                               keys(symbols, symbol_ids, false));
        }
        std::vector<sp::Bpe::Rule> rules;
        if (merges)
            for (size_t rank = 0; rank < merges->shape(0); rank++)
                rules.push_back({(*merges)(rank, 0), (*merges)(rank, 1), uint32_t(rank), (*merges)(rank, 2)});
        std::optional<sp::Bpe> as_bpe;
        std::optional<sp::Unigram> as_unigram;
        if (bpe)
            as_bpe.emplace(texts, std::vector<float>(scores.begin(), scores.end()), std::move(rules), merges.has_value());
        else
            as_unigram.emplace(texts, scores, unknown_score, in_double);
        pieces_ = texts.size();
        encoder_.emplace(texts, options, std::move(normalizer), std::move(as_bpe), std::move(as_unigram),
                         bpe ? keys(symbols, symbol_ids, true) : sp::Trie::Keys());
    }

    ~SentencePieceEncoder() {
        for (PyObject* integer : integers_) Py_DECREF(integer);
    }

    Ids encode_array(const nb::str& text, bool first) const {
        sp::Ids ids = encoded(text, first);
        const size_t size = ids.size();
        uint32_t* data = ids.release();
        nb::capsule owner(data, [](void* pointer) noexcept { delete[] static_cast<uint32_t*>(pointer); });
        return Ids(data, {size}, owner);
    }

    // The list shares one integer object an id: making a new one for each place costs more than finding the id.
    nb::list encode(const nb::str& text, bool first) {
        const sp::Ids ids = encoded(text, first);
        while (integers_.size() < pieces_) {
            PyObject* integer = PyLong_FromSize_t(integers_.size());
            if (!integer) throw nb::python_error();
            integers_.push_back(integer);
        }
        nb::object list = nb::steal(PyList_New(Py_ssize_t(ids.size())));
        if (!list.is_valid()) throw nb::python_error();
        for (size_t i = 0; i < ids.size(); i++) {
            PyObject* integer = integers_[ids.data()[i]];
            Py_INCREF(integer);
            PyList_SET_ITEM(list.ptr(), Py_ssize_t(i), integer);
        }
        return nb::borrow<nb::list>(list);
    }

  private:
    sp::Ids encoded(const nb::str& text, bool first) const {
        Py_ssize_t size = 0;
        const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);  // raises UnicodeEncodeError for a lone surrogate
        if (!data) throw nb::python_error();
        sp::Ids ids;
        nb::gil_scoped_release unlocked;
        encoder_->encode({data, size_t(size)}, first, ids);
        return ids;
    }

    std::optional<sp::Encoder> encoder_;
    size_t pieces_;
    std::vector<PyObject*> integers_;
};

}  // namespace

void bind_sentencepiece(nb::module_& module) {
    nb::class_<SentencePieceEncoder>(module, "SentencePieceEncoder")
        .def(nb::init<const nb::list&, const std::vector<double>&, double, std::optional<Rules>, bool, bool, bool, bool,
                      std::optional<uint32_t>, const std::vector<uint32_t>&, const nb::list&,
                      const std::vector<uint32_t>&, bool, const nb::bytes&, std::tuple<bool, bool, bool, bool>>(),
             nb::arg("pieces"), nb::arg("scores"), nb::arg("unknown_score"), nb::arg("merges").none(), nb::arg("bpe"),
             nb::arg("words"), nb::arg("fuse_unknown"), nb::arg("in_double"), nb::arg("unknown_id").none(),
             nb::arg("byte_ids"), nb::arg("symbols"), nb::arg("symbol_ids"), nb::arg("normalizes"), nb::arg("charsmap"),
             nb::arg("spaces"))
        .def("encode", &SentencePieceEncoder::encode, nb::arg("text"), nb::arg("first"))
        .def("encode_array", &SentencePieceEncoder::encode_array, nb::arg("text"), nb::arg("first"));
}

}  // namespace tinylm
