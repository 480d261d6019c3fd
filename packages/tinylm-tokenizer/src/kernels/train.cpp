// Learning byte-level merges: the border to Python. The readable version is byte_bpe_fast.py: train_merges.
#include "train.hpp"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>

#include "bindings.hpp"
#include "scan.hpp"

namespace nb = nanobind;

namespace tinylm {
namespace {

// Lets Ctrl-C end a long loop: raises what a signal handler raised.
void check_signals() {
    nb::gil_scoped_acquire locked;
    if (PyErr_CheckSignals()) throw nb::python_error();
}

std::unique_ptr<Trainer> make_trainer(const nb::list& pieces, const std::vector<int64_t>& counts,
                                      const std::vector<uint32_t>& byte_ids, size_t wanted, size_t threads) {
    const std::vector<std::string_view> views = utf8(pieces);
    if (views.size() != counts.size() || byte_ids.size() != 256)
        throw nb::value_error("wanted one count a piece and 256 byte ids");
    nb::gil_scoped_release unlocked;
    auto for_each = [&](size_t part, size_t parts, auto&& call) {
        for (size_t i = views.size() * part / parts; i < views.size() * (part + 1) / parts; i++) call(views[i], counts[i]);
    };
    return std::make_unique<Trainer>(for_each, byte_ids, wanted, threads, check_signals);
}

// Counts the pieces of chunks of text; then makes the trainer that learns from them.
class PieceCounter {
  public:
    explicit PieceCounter(std::string_view pattern) {
        const std::optional<Pattern> named = pattern_named(pattern);
        if (!named) throw nb::value_error("unknown pattern");
        pattern_ = *named;
    }

    // chunks: (UTF-8 bytes, where to stop: pieces that start there or later are not counted, whether to check that the
    // bytes are text). Returns the number of chunks, or the number of the first one that is no text.
    size_t count(const std::vector<std::tuple<nb::bytes, size_t, bool>>& chunks) {
        nb::gil_scoped_release unlocked;
        for (size_t i = 0; i < chunks.size(); i++) {
            const auto& [bytes, stop, check] = chunks[i];
            const std::string_view text(bytes.c_str(), bytes.size());
            if (check && first_not_text(text) != text.size()) return i;
            const char *end = text.data() + text.size(), *last = text.data() + stop;
            for_each_piece(pattern_, text, [&](std::string_view piece) {
                if (piece.data() < last) counts_.add(piece, end);
            });
            counts_.flush();
        }
        return chunks.size();
    }

    void absorb(PieceCounter& other) {  // and empty it
        nb::gil_scoped_release unlocked;
        counts_.absorb(other.counts_);
        other.counts_ = {};
    }

    // Empties the counter.
    std::unique_ptr<Trainer> trainer(const std::vector<uint32_t>& byte_ids, size_t wanted, size_t threads) {
        if (byte_ids.size() != 256) throw nb::value_error("wanted 256 byte ids");
        nb::gil_scoped_release unlocked;
        const PieceCounts counts = std::exchange(counts_, {});
        auto for_each = [&](size_t part, size_t parts, auto&& call) { counts.for_each(part, parts, call); };
        return std::make_unique<Trainer>(for_each, byte_ids, wanted, threads, check_signals);
    }

    size_t distinct() const { return counts_.distinct(); }
    size_t piece_bytes() const { return counts_.piece_bytes(); }

  private:
    Pattern pattern_;
    PieceCounts counts_;
};

}  // namespace

void bind_training(nb::module_& module) {
    nb::class_<Trainer>(module, "Trainer").def("step", &Trainer::step, nb::call_guard<nb::gil_scoped_release>());
    module.def("make_trainer", &make_trainer);
    nb::class_<PieceCounter>(module, "PieceCounter")
        .def(nb::init<std::string_view>())
        .def("count", &PieceCounter::count)
        .def("absorb", &PieceCounter::absorb)
        .def("trainer", &PieceCounter::trainer)
        .def_prop_ro("distinct", &PieceCounter::distinct)
        .def_prop_ro("piece_bytes", &PieceCounter::piece_bytes);
}

}  // namespace tinylm
