// Byte-level BPE encoding: the border to Python. The readable version is byte_bpe_fast.py: Encoder.
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <deque>
#include <string>

#include "bindings.hpp"
#include "merge.hpp"

namespace nb = nanobind;

namespace tinylm {
namespace {

using IdsIn = nb::ndarray<const uint32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr size_t kLong = 256;  // bytes: from here on the heap is quicker

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

}  // namespace

void bind_byte_bpe(nb::module_& module) {
    nb::class_<Encoder>(module, "Encoder")
        .def(nb::init<const std::vector<uint32_t>&, const IdsIn&, const nb::list&, const std::vector<uint32_t>&, bool>())
        .def("encode_pieces", &Encoder::encode_pieces);
}

}  // namespace tinylm
