// The Python face of the kernels: tinylm.tokenizer._kernels. Strings come in, NumPy arrays go out; the GIL is released
// while pieces are merged. What each class does is said in kernels.py, which is the only module that imports this one.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <deque>
#include <string>

#include "merge.hpp"
#include "train.hpp"

namespace nb = nanobind;
using namespace tinylm;

using Ids = nb::ndarray<nb::numpy, uint32_t, nb::ndim<1>>;
using IdsIn = nb::ndarray<const uint32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

namespace {

constexpr size_t kLong = 256;  // bytes: from here on the heap is quicker

// The UTF-8 bytes of each string in a list. They belong to the strings, which the list keeps alive; for ASCII text
// nothing is copied. Raises UnicodeEncodeError for a lone surrogate.
std::vector<std::string_view> utf8(const nb::list& pieces) {
    std::vector<std::string_view> views;
    views.reserve(nb::len(pieces));
    for (nb::handle piece : pieces) {
        Py_ssize_t size = 0;
        const char* data = PyUnicode_AsUTF8AndSize(piece.ptr(), &size);
        if (!data) throw nb::python_error();
        views.emplace_back(data, size_t(size));
    }
    return views;
}

Ids to_numpy(std::vector<uint32_t> ids) {
    auto* kept = new std::vector<uint32_t>(std::move(ids));
    nb::capsule owner(kept, [](void* pointer) noexcept { delete static_cast<std::vector<uint32_t>*>(pointer); });
    return Ids(kept->data(), {kept->size()}, owner);
}

class Encoder {
  public:
    // byte_ids: the id of each byte; merges: rows of (left, right, result) in order of rank; tokens and token_ids: all
    // tokens. A token goes into the table of whole pieces if it must be found there first (whole_piece_first), or if
    // merging its bytes gives it anyway, so that looking it up is only quicker.
    Encoder(const std::vector<uint32_t>& byte_ids, const IdsIn& merges, const nb::list& tokens,
            const std::vector<uint32_t>& token_ids, bool whole_piece_first)
        : merges_(merges.shape(0)) {
        if (byte_ids.size() != 256 || merges.shape(1) != 3 || nb::len(tokens) != token_ids.size())
            throw nb::value_error("wanted 256 byte ids, merges of 3 columns and one id a token");
        std::copy(byte_ids.begin(), byte_ids.end(), byte_ids_.begin());
        for (size_t rank = 0; rank < merges.shape(0); rank++)
            merges_.add(merges(rank, 0), merges(rank, 1), {uint32_t(rank), merges(rank, 2)});
        for (nb::handle token : tokens) {
            char* data = nullptr;
            Py_ssize_t size = 0;
            if (PyBytes_AsStringAndSize(token.ptr(), &data, &size)) throw nb::python_error();
            tokens_.emplace_back(data, size_t(size));
        }
        nb::gil_scoped_release unlocked;
        whole_.reserve(tokens_.size());
        Scratch scratch;
        for (size_t i = 0; i < tokens_.size(); i++) {
            merge(tokens_[i], scratch);
            if (whole_piece_first || (scratch.ids.size() == 1 && scratch.ids[0] == token_ids[i]))
                whole_.add(tokens_[i], token_ids[i]);
        }
    }

    Ids encode_pieces(const nb::list& pieces) const {
        const std::vector<std::string_view> views = utf8(pieces);
        std::vector<uint32_t> ids;
        {
            nb::gil_scoped_release unlocked;
            Scratch scratch;
            ids.reserve(views.size() + views.size() / 2);
            for (std::string_view piece : views) {
                const uint32_t id = whole_.find(piece);
                if (id != kNone) {
                    ids.push_back(id);
                } else {
                    merge(piece, scratch);
                    ids.insert(ids.end(), scratch.ids.begin(), scratch.ids.end());
                }
            }
        }
        return to_numpy(std::move(ids));
    }

  private:
    struct Scratch {  // one per call, so that threads share nothing that changes
        std::vector<uint32_t> ids;
        std::vector<Merge> next;
    };

    void merge(std::string_view piece, Scratch& scratch) const {
        scratch.ids.clear();
        for (unsigned char byte : piece) scratch.ids.push_back(byte_ids_[byte]);
        if (piece.size() < kLong)
            merge_short(merges_, scratch.ids, scratch.next);
        else
            merge_long(merges_, scratch.ids);
    }

    std::array<uint32_t, 256> byte_ids_;
    MergeTable merges_;
    std::deque<std::string> tokens_;  // what the views in whole_ look at; a deque never moves its strings
    WholePieces whole_;
};

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

NB_MODULE(_kernels, module) {
    module.doc() = "Compiled byte-level BPE; use tinylm.tokenizer.kernels.";
    nb::class_<Encoder>(module, "Encoder")
        .def(nb::init<const std::vector<uint32_t>&, const IdsIn&, const nb::list&, const std::vector<uint32_t>&, bool>())
        .def("encode_pieces", &Encoder::encode_pieces);
    nb::class_<Trainer>(module, "Trainer").def("step", &Trainer::step, nb::call_guard<nb::gil_scoped_release>());
    module.def("make_trainer", &make_trainer);
}
