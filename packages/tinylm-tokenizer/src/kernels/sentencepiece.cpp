// SentencePiece-BPE and Unigram encoding: the border to Python. kernels/sentencepiece.py says what the arguments are.
#include "sentencepiece.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <exception>

#include "bindings.hpp"
#include "int_list.hpp"
#include "threads.hpp"

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
    SentencePieceEncoder(const nb::list& pieces, std::vector<double> scores, double unknown_score,
                         std::optional<Rules> merges, bool bpe, bool words, bool fuse_unknown, bool in_double,
                         std::optional<uint32_t> unknown_id, const std::vector<uint32_t>& byte_ids,
                         const nb::list& symbols, const std::vector<uint32_t>& symbol_ids, bool normalizes,
                         const nb::bytes& charsmap, std::tuple<bool, bool, bool, bool> spaces) {
        std::vector<std::string> texts;
        for (std::string_view piece : tinylm::utf8(pieces)) texts.push_back(sp::to_internal(piece));
        sp::Options options{bpe, words, fuse_unknown, in_double, unknown_id, {}};
        if (byte_ids.size() == 256) std::copy(byte_ids.begin(), byte_ids.end(), options.byte_ids.emplace().begin());
        const auto [dummy_prefix, remove_extra, suffix, escape] = spaces;
        sp::Normalizer normalizer({charsmap.c_str(), charsmap.size()}, {dummy_prefix, remove_extra, suffix, escape},
                                  normalizes ? keys(symbols, symbol_ids, false) : sp::Trie::Keys());
        std::vector<sp::Bpe::Rule> rules;
        if (merges)
            for (size_t rank = 0; rank < merges->shape(0); rank++)
                rules.push_back({(*merges)(rank, 0), (*merges)(rank, 1), uint32_t(rank), (*merges)(rank, 2)});
        std::optional<sp::Bpe> as_bpe;
        std::optional<sp::Unigram> as_unigram;
        if (bpe)
            as_bpe.emplace(texts, std::vector<float>(scores.begin(), scores.end()), std::move(rules),
                           merges.has_value());
        else {
            if (unknown_id && texts.at(*unknown_id).empty()) scores.at(*unknown_id) = unknown_score;
            as_unigram.emplace(texts, std::move(scores), unknown_score, in_double);
        }
        integers_.resize(texts.size());
        encoder_.emplace(texts, options, std::move(normalizer), std::move(as_bpe), std::move(as_unigram),
                         bpe ? keys(symbols, symbol_ids, true) : sp::Trie::Keys());
    }

    Ids encode_array(const nb::str& text, bool first) {
        sp::Ids ids;
        encode_into(ids, text, first);
        const size_t size = ids.size();
        uint32_t* data = ids.release();
        nb::capsule owner(data, [](void* pointer) noexcept { std::free(pointer); });
        return Ids(data, {size}, owner);
    }

    nb::list encode(const nb::str& text, bool first) {
        // Making a list can start Python's garbage collector, and that code which encodes, in this thread or in another:
        // the buffer of short texts is away until the list is made.
        if (PyUnicode_GET_LENGTH(text.ptr()) >= kKeepGil) return encode_long(whole_utf8(text).view(), first);
        sp::Ids ids = std::exchange(short_ids_, sp::Ids());
        ids.clear();
        encode_into(ids, text, first);
        nb::list list = to_list(ids.data(), ids.size());
        short_ids_ = std::move(ids);
        return list;
    }

    // A text that goes on where no piece crosses: also takes and gives what one part leaves to the next.
    nb::tuple encode_on(const nb::str& text, bool first, double sum, bool after_unknown) {
        const WholeUtf8 utf8 = whole_utf8(text);
        sp::Ids ids;
        sp::State state{sum, after_unknown};
        {
            nb::gil_scoped_release unlocked;
            std::unique_ptr<sp::Worker> worker = encoder_->take();
            encoder_->encode(utf8.view(), first, *worker, ids, state);
            state = encoder_->state(*worker, ids);
            encoder_->give_back(std::move(worker));
        }
        return nb::make_tuple(to_list(ids.data(), ids.size()), state.sum, state.after_unknown);
    }

    nb::object encode_batch(const nb::list& texts, size_t threads) {
        const std::vector<std::string_view> views = tinylm::utf8(texts);
        std::vector<Encoded> encoded(std::clamp<size_t>(threads, 1, views.size() / kTogether + 1));
        {
            nb::gil_scoped_release unlocked;
            std::atomic<size_t> next = 0;
            std::vector<std::thread> others =
                start_threads(encoded.size() - 1, [&](size_t i) { encode_some(views, next, encoded[i]); });
            encode_some(views, next, encoded[0]);
            for (std::thread& other : others) other.join();
        }
        nb::object lists = nb::steal(PyList_New(Py_ssize_t(views.size())));
        if (!lists.is_valid()) throw nb::python_error();
        for (const Encoded& part : encoded) {
            if (part.error) std::rethrow_exception(part.error);
            size_t start = 0;
            for (auto [text, end] : part.ends) {
                nb::list list = to_list(part.ids.data() + start, end - start);
                PyList_SET_ITEM(lists.ptr(), Py_ssize_t(text), list.release().ptr());
                start = end;
            }
        }
        return lists;
    }

    void after_fork() { encoder_->after_fork(); }

  private:
    static constexpr Py_ssize_t kKeepGil = 4096;  // characters: for less, giving the GIL back costs more than it saves
    static constexpr size_t kTogether = 64;       // texts that a thread takes at a time

    struct Encoded {  // by one thread
        sp::Ids ids;
        std::vector<std::pair<size_t, size_t>> ends;  // which text, and where its ids end
        std::exception_ptr error;
    };

    static std::string_view utf8(const nb::str& text) {
        Py_ssize_t size = 0;
        const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
        if (!data) throw nb::python_error();  // UnicodeEncodeError: a lone surrogate
        return {data, size_t(size)};
    }

    void encode_into(sp::Ids& ids, const nb::str& text, bool first) {
        if (PyUnicode_GET_LENGTH(text.ptr()) < kKeepGil) {  // nobody else can be in here: one worker is enough
            if (!worker_) worker_ = encoder_->take();
            encoder_->encode(utf8(text), first, *worker_, ids);
            return;
        }
        const WholeUtf8 utf8 = whole_utf8(text);
        nb::gil_scoped_release unlocked;
        std::unique_ptr<sp::Worker> worker = encoder_->take();
        encoder_->encode(utf8.view(), first, *worker, ids);
        encoder_->give_back(std::move(worker));
    }

    // The ids of one block are Python's ints before those of the next are found: they never are all in memory twice.
    nb::list encode_long(std::string_view text, bool first) {
        IntList list(std::min(text.size() / 4 + 16, IntList::kFirst));
        std::unique_ptr<sp::Worker> worker = encoder_->take();
        sp::Encoder::Reading reading = encoder_->begin(text, first, *worker);
        for (sp::Ids ids;; encoder_->clear(*worker, ids)) {
            {
                nb::gil_scoped_release unlocked;
                if (!encoder_->next(reading, *worker, ids)) break;
            }
            const size_t read = text.size() - reading.text.rest.size();
            integers_.append(list, ids.data(), ids.size(), double(read) / double(text.size()));
        }
        encoder_->give_back(std::move(worker));
        return list.done();
    }

    void encode_some(const std::vector<std::string_view>& texts, std::atomic<size_t>& next, Encoded& out) const {
        try {
            std::unique_ptr<sp::Worker> worker = encoder_->take();
            sp::Ids ids;
            for (size_t begin; (begin = next.fetch_add(kTogether)) < texts.size();)
                for (size_t i = begin; i < std::min(begin + kTogether, texts.size()); i++) {
                    ids.clear();
                    encoder_->encode(texts[i], true, *worker, ids);
                    out.ids.add(ids.data(), ids.size());
                    out.ends.emplace_back(i, out.ids.size());
                }
            encoder_->give_back(std::move(worker));
        } catch (...) {
            out.error = std::current_exception();
        }
    }

    nb::list to_list(const uint32_t* ids, size_t count) {
        IntList list(count);
        integers_.append(list, ids, count);
        return list.done();
    }

    std::optional<sp::Encoder> encoder_;
    SharedInts integers_;
    std::unique_ptr<sp::Worker> worker_;  // of short texts
    sp::Ids short_ids_;
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
        .def("encode", &SentencePieceEncoder::encode, nb::arg("text"), nb::arg("first") = true)
        .def("encode_array", &SentencePieceEncoder::encode_array, nb::arg("text"), nb::arg("first") = true)
        .def("encode_on", &SentencePieceEncoder::encode_on, nb::arg("text"), nb::arg("first"), nb::arg("sum"),
             nb::arg("after_unknown"))
        .def("encode_batch", &SentencePieceEncoder::encode_batch, nb::arg("texts"), nb::arg("threads"))
        .def("after_fork", &SentencePieceEncoder::after_fork);
}

}  // namespace tinylm
