// Byte-level BPE: the border to Python. Strings come in, lists and NumPy arrays go out; the GIL is free while text that is
// worth it is encoded. What the class does is said in kernels/byte_bpe.py, the only Python code that makes one.
#include "byte_bpe.hpp"

#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <exception>
#include <optional>
#include <unordered_map>

#include "bindings.hpp"
#include "int_list.hpp"
#include "threads.hpp"

namespace nb = nanobind;

namespace tinylm {
namespace {

constexpr size_t kKeepGil = 4096;        // characters: for less, giving the GIL back costs more than it is worth
constexpr uint32_t kNear = 1 << 24;      // ids below have a place in an array; no vocabulary of today comes near

class Encoder {
    // What a stretch of text is given to.
    auto encode_into(IdArray& ids) {
        return [this, &ids](const uint8_t* text, size_t size, bool final, size_t readable) {
            return bpe_->encode(text, size, final, readable, ids);
        };
    }

  public:
    Encoder(std::string_view pattern, bool ranked, bool whole_piece_first, bool merges_make_all,
            const std::vector<uint32_t>& byte_ids, const nb::list& merges, const nb::dict& tokens, const nb::dict& named) {
        const std::optional<Pattern> known = pattern_named(pattern);
        if (!known || byte_ids.size() != 256) throw nb::value_error("wanted a known pattern and 256 byte ids");
        std::vector<uint32_t> flat;
        flat.reserve(3 * nb::len(merges));
        for (nb::handle merge : merges)
            for (int i = 0; i < 3; i++) flat.push_back(nb::cast<uint32_t>(merge[i]));
        std::vector<uint32_t> ids;
        add_bytes(tokens, ids);
        const size_t ordinary = ids.size();
        add_bytes(named, ids);
        std::vector<std::string_view> views;
        for (size_t i = 0; i < ordinary; i++) views.push_back(bytes_of(ids[i]));
        ids.resize(ordinary);
        nb::gil_scoped_release unlocked;
        bpe_ = std::make_unique<ByteBpe>(EncoderOptions{*known, ranked, whole_piece_first, merges_make_all},
                                         byte_ids.data(), flat.data(), flat.size() / 3, views, ids);
    }

    nb::list encode(nb::str text) {
        Utf8Text utf8(text.ptr());
        IntList list(std::min(utf8.length() / 3 + 16, IntList::kFirst));
        if (utf8.length() <= kKeepGil) {  // nobody else can be in here: one buffer is enough
            scratch_.clear();              // of what a text left that memory did not suffice for
            while (encode_some(text, utf8, scratch_)) append(list, scratch_, utf8.share());
            return list.done();
        }
        IdArray ids;
        while (encode_some(text, utf8, ids, true)) append(list, ids, utf8.share());
        return list.done();
    }

    Ids encode_array(nb::str text) {
        Utf8Text utf8(text.ptr());
        // Room that is not used costs nothing; room that is lacking may cost a copy of everything, page by page.
        IdArray ids((utf8.ascii() ? utf8.length() / 3 : 2 * utf8.length()) + 64);
        encode_all(text, utf8, ids);
        const size_t size = ids.size();
        uint32_t* data = ids.release();
        return Ids(data, {size}, nb::capsule(data, [](void* ids) noexcept { std::free(ids); }));
    }

    size_t count(nb::str text) {
        Utf8Text utf8(text.ptr());
        IdArray ids;
        size_t total = 0;
        while (encode_some(text, utf8, ids, true)) {
            total += ids.size();
            ids.clear();
        }
        return total;
    }

    // Blocks of texts are taken by whichever thread is free; the ids become Python's ints at the end.
    nb::list encode_batch(nb::list texts, size_t threads) {
        const size_t count = nb::len(texts);
        std::vector<Utf8Text> utf8;
        utf8.reserve(count);
        for (nb::handle text : texts) {
            if (!PyUnicode_Check(text.ptr())) throw nb::type_error("wanted a list of strings");
            utf8.emplace_back(text.ptr());
        }
        threads = std::min(threads, count / kBlock + 1);
        struct Done {
            IdArray ids;
            std::vector<std::pair<size_t, size_t>> ends;  // text, where its ids end
            std::exception_ptr error;
            size_t text = 0;
        };
        std::vector<Done> done(threads);
        std::atomic<size_t> next{0};
        auto work = [&](Done& mine) {
            try {
                for (size_t begin; (begin = next.fetch_add(kBlock)) < count;) {
                    for (size_t i = begin; i < std::min(begin + kBlock, count); i++) {
                        mine.text = i;
                        while (utf8[i].next(encode_into(mine.ids))) {}
                        mine.ends.emplace_back(i, mine.ids.size());
                    }
                }
            } catch (...) {
                mine.error = std::current_exception();
            }
        };
        {
            nb::gil_scoped_release unlocked;
            std::vector<std::thread> others = start_threads(threads - 1, [&](size_t i) { work(done[i]); });
            work(done[0]);
            for (std::thread& other : others) other.join();
        }
        for (Done& part : done)
            if (part.error) rethrow(part.error, PyList_GET_ITEM(texts.ptr(), Py_ssize_t(part.text)));
        nb::list result = nb::steal<nb::list>(PyList_New(Py_ssize_t(count)));
        for (const Done& part : done) {
            size_t start = 0;
            for (auto [text, end] : part.ends) {
                IntList list(end - start);
                numbers_.append(list, part.ids.data() + start, end - start);
                PyList_SET_ITEM(result.ptr(), Py_ssize_t(text), list.done().release().ptr());
                start = end;
            }
        }
        return result;
    }

    bool side_by_side() const { return bpe_->side_by_side(); }  // only tests need it

    nb::bytes decode_bytes(nb::list ids) const {
        const size_t count = nb::len(ids);
        std::vector<std::string_view> parts;
        parts.reserve(count);
        size_t size = 0;
        for (size_t i = 0; i < count; i++) {
            PyObject* number = PyList_GET_ITEM(ids.ptr(), Py_ssize_t(i));
            const unsigned long long id = PyLong_Check(number) ? PyLong_AsUnsignedLongLong(number) : ~0ull;
            if (id == ~0ull && PyErr_Occurred()) PyErr_Clear();
            parts.push_back(id < kNone ? bytes_of(uint32_t(id)) : std::string_view());
            if (!parts.back().data()) raise_unknown(number);
            size += parts.back().size();
        }
        nb::bytes result = nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, Py_ssize_t(size)));
        if (!result.is_valid()) throw nb::python_error();
        char* out = PyBytes_AS_STRING(result.ptr());
        const char* last = out + size;
        for (std::string_view part : parts) {
            if (part.size() <= 16 && last - out >= 16)
                std::memcpy(out, part.data(), 16);  // a copy of fixed size; arena_ has room behind it
            else
                std::memcpy(out, part.data(), part.size());
            out += part.size();
        }
        return result;
    }

  private:
    static constexpr size_t kBlock = 64;  // texts

    struct Place {
        uint32_t start = kNone, size = 0;
    };

    void add_bytes(const nb::dict& tokens, std::vector<uint32_t>& ids) {
        for (auto [key, value] : tokens) {
            char* data = nullptr;
            Py_ssize_t size = 0;
            if (PyBytes_AsStringAndSize(value.ptr(), &data, &size)) throw nb::python_error();
            const uint32_t id = nb::cast<uint32_t>(key);
            if (arena_.size() + size_t(size) + 32 >= kNone) throw nb::value_error("more than 4 GB of tokens");
            Place& place = id < kNear ? (id >= near_.size() ? near_.resize(id + 1), near_[id] : near_[id]) : far_[id];
            arena_.resize(std::max(arena_.size(), size_t(16)) - 16);
            place = {uint32_t(arena_.size()), uint32_t(size)};
            arena_.append(data, size_t(size));
            arena_.append(16, '\0');
            ids.push_back(id);
        }
        numbers_.resize(near_.size());
    }

    std::string_view bytes_of(uint32_t id) const {  // null: no such id
        if (id < near_.size()) return near_[id].start == kNone ? std::string_view() : view(near_[id]);
        const auto found = far_.empty() ? far_.end() : far_.find(id);
        return found == far_.end() ? std::string_view() : view(found->second);
    }

    std::string_view view(Place place) const { return std::string_view(arena_).substr(place.start, place.size); }

    [[noreturn]] static void raise_unknown(PyObject* id) {
        PyErr_SetObject(PyExc_KeyError, id);
        throw nb::python_error();
    }

    static void rethrow(std::exception_ptr error, PyObject* text) {
        try {
            std::rethrow_exception(error);
        } catch (const LoneSurrogate&) {
            raise_lone_surrogate(text);
        }
    }

    // Encodes the next stretch of a text; false: there is none.
    bool encode_some(const nb::str& text, Utf8Text& utf8, IdArray& ids, bool release = false) {
        try {
            std::optional<nb::gil_scoped_release> unlocked;
            if (release) unlocked.emplace();
            return utf8.next(encode_into(ids));
        } catch (const LoneSurrogate&) {
            ids.clear();
            raise_lone_surrogate(text.ptr());
        }
    }

    void encode_all(const nb::str& text, Utf8Text& utf8, IdArray& ids) {
        try {
            std::optional<nb::gil_scoped_release> unlocked;
            if (utf8.length() > kKeepGil) unlocked.emplace();
            while (utf8.next(encode_into(ids))) {}
        } catch (const LoneSurrogate&) {
            raise_lone_surrogate(text.ptr());
        }
    }

    void append(IntList& list, IdArray& ids, double share) {
        numbers_.append(list, ids.data(), ids.size(), share);
        ids.clear();
    }

    std::unique_ptr<ByteBpe> bpe_;
    std::string arena_;               // the bytes of all tokens, and 16 more that may be read
    std::vector<Place> near_;         // id → its bytes in arena_
    std::unordered_map<uint32_t, Place> far_;
    SharedInts numbers_;
    IdArray scratch_;                // only touched under the GIL
};

}  // namespace

void bind_byte_bpe(nb::module_& module) {
    nb::class_<Encoder>(module, "Encoder")
        .def(nb::init<std::string_view, bool, bool, bool, const std::vector<uint32_t>&, const nb::list&, const nb::dict&,
                      const nb::dict&>())
        .def("encode", &Encoder::encode)
        .def("encode_array", &Encoder::encode_array)
        .def("encode_batch", &Encoder::encode_batch)
        .def("count", &Encoder::count)
        .def("side_by_side", &Encoder::side_by_side)
        .def("decode_bytes", &Encoder::decode_bytes);
}

}  // namespace tinylm
