// A Python str as UTF-8: ASCII as it lies in memory, every other kind converted, some ten thousand characters at a time
// (Utf8Text) or at once (WholeUtf8). Needs no GIL once it is made, as long as somebody keeps the str.
#pragma once

#include <Python.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "ids.hpp"

namespace tinylm {

struct LoneSurrogate {};

constexpr size_t kAtOnce = 16;  // characters that are looked at together

#if defined(__SSE2__)

// The lowest byte of each of 16 characters; the highest bit of a byte says that its character is beyond ASCII.
inline __m128i narrowed(const uint8_t* text) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(text)); }

inline __m128i narrowed(const uint16_t* text) {
    const auto* from = reinterpret_cast<const __m128i*>(text);
    // What is beyond ASCII becomes -1, which narrowing leaves.
    const auto marked = [](__m128i units) {
        const __m128i ascii = _mm_cmpeq_epi16(_mm_srli_epi16(units, 7), _mm_setzero_si128());
        return _mm_or_si128(_mm_and_si128(units, ascii), _mm_andnot_si128(ascii, _mm_set1_epi16(-1)));
    };
    return _mm_packs_epi16(marked(_mm_loadu_si128(from)), marked(_mm_loadu_si128(from + 1)));
}

inline __m128i narrowed(const uint32_t* text) {
    const auto* from = reinterpret_cast<const __m128i*>(text);
    const auto pair = [&](int i) { return _mm_packs_epi32(_mm_loadu_si128(from + i), _mm_loadu_si128(from + i + 1)); };
    return _mm_packus_epi16(pair(0), pair(2));  // what is too large becomes the largest
}

// Writes 16 characters as if they were ASCII; returns how many are, up to the first that is not.
template <class Unit>
size_t narrow(const Unit* text, uint8_t* out) {
    const __m128i bytes = narrowed(text);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
    return size_t(std::countr_zero(uint32_t(_mm_movemask_epi8(bytes)) | 1u << kAtOnce));
}

#else

template <class Unit>
size_t narrow(const Unit* text, uint8_t* out) {
    size_t ascii = 0;
    while (ascii < kAtOnce && text[ascii] < 0x80) ascii++;
    for (size_t i = 0; i < kAtOnce; i++) out[i] = uint8_t(text[i]);
    return ascii;
}

#endif

// `count` characters as UTF-8, written to `out`, which has room for kAtOnce bytes more; returns where it ends. Throws
// LoneSurrogate.
template <class Unit>
uint8_t* to_utf8(const Unit* text, size_t count, uint8_t* out) {
    for (const Unit* const end = text + count; text < end;) {
        if (size_t(end - text) >= kAtOnce && *text < 0x80) {
            const size_t ascii = narrow(text, out);
            if (ascii == kAtOnce) [[likely]] {  // guessed, so that the next 16 do not wait for these
                text += kAtOnce;
                out += kAtOnce;
            } else {
                text += ascii;
                out += ascii;
            }
            continue;
        }
        const uint32_t code = *text++;
        if (code < 0x80) {
            *out++ = uint8_t(code);
        } else if (code < 0x800) {
            *out++ = uint8_t(0xC0 | code >> 6);
            *out++ = uint8_t(0x80 | (code & 0x3F));
        } else if (code < 0x10000) {
            if (code >> 11 == 0xD800 >> 11) throw LoneSurrogate();
            *out++ = uint8_t(0xE0 | code >> 12);
            *out++ = uint8_t(0x80 | (code >> 6 & 0x3F));
            *out++ = uint8_t(0x80 | (code & 0x3F));
        } else {
            *out++ = uint8_t(0xF0 | code >> 18);
            *out++ = uint8_t(0x80 | (code >> 12 & 0x3F));
            *out++ = uint8_t(0x80 | (code >> 6 & 0x3F));
            *out++ = uint8_t(0x80 | (code & 0x3F));
        }
    }
    return out;
}

// The same for characters `from` to `from + count` of a str. `data`: its characters, of `kind` bytes each.
inline uint8_t* to_utf8(int kind, const uint8_t* data, size_t from, size_t count, uint8_t* out) {
    switch (kind) {
        case 1: return to_utf8(data + from, count, out);
        case 2: return to_utf8(reinterpret_cast<const uint16_t*>(data) + from, count, out);
        default: return to_utf8(reinterpret_cast<const uint32_t*>(data) + from, count, out);
    }
}

constexpr size_t bytes_of_one(int kind) { return kind == 1 ? 2 : kind == 2 ? 3 : 4; }  // a character's, at most

class Utf8Text {
  public:
    // Errors: none; `text` must be a str.
    explicit Utf8Text(PyObject* text)
        : ascii_(PyUnicode_IS_ASCII(text)),
          kind_(int(PyUnicode_KIND(text))),
          data_(static_cast<const uint8_t*>(PyUnicode_DATA(text))),
          length_(size_t(PyUnicode_GET_LENGTH(text))) {}

    size_t length() const { return length_; }
    bool ascii() const { return ascii_; }
    double share() const { return double(read_) / double(std::max(length_, size_t(1))); }  // that was given away

    // Gives the next stretch to `use(bytes, size, final, readable)`, which returns how many bytes it has used; the rest
    // comes again in front of the next stretch. False: there is nothing left. Throws LoneSurrogate.
    template <class Use>
    bool next(Use use) {
        if (read_ == length_ && begin_ == end_) return false;
        const size_t wanted = std::min(length_ - read_, stretch_ << (ascii_ ? 1 : 0));
        size_t used;
        if (ascii_) {
            end_ = read_ += wanted;
            used = use(data_ + begin_, end_ - begin_, read_ == length_, length_ + 1 - begin_);  // + 1: Python's NUL
        } else {
            if (begin_) std::memmove(utf8_.data(), utf8_.data() + begin_, end_ - begin_);
            end_ -= begin_;
            begin_ = 0;
            utf8_.grown_to(utf8_.data() + end_);
            utf8_.expect(bytes_of_one(kind_) * wanted + kReadable);
            convert(wanted);
            std::memset(utf8_.data() + end_, 0, kReadable);
            used = use(utf8_.data(), end_, read_ == length_, end_ + kReadable);
        }
        begin_ += used;
        stretch_ = used ? kStretch : 2 * stretch_;  // of one endless piece each byte is seen about twice
        return true;
    }

  private:
    static constexpr size_t kStretch = 65'536;  // characters: what they become stays in the nearest caches
    static constexpr size_t kReadable = kAtOnce;  // bytes behind the text that may be read

    void convert(size_t count) {
        const uint8_t* out = to_utf8(kind_, data_, read_, count, utf8_.data() + end_);
        read_ += count;
        end_ = size_t(out - utf8_.data());
    }

    bool ascii_;
    int kind_;  // bytes a character
    const uint8_t* data_;
    size_t length_, read_ = 0;        // characters
    size_t begin_ = 0, end_ = 0;      // bytes that nobody has used yet: of utf8_, or of data_ itself
    size_t stretch_ = kStretch;
    Growing<uint8_t> utf8_;
};

// The whole of it at once, for who reads it here and there. Python's own conversion keeps what it makes beside the str, and
// writes it twice, to small pages: a tenth of the time of encoding.
class WholeUtf8 {
  public:
    // Errors: LoneSurrogate; `text` must be a str.
    explicit WholeUtf8(PyObject* text) {
        const auto* data = static_cast<const uint8_t*>(PyUnicode_DATA(text));
        const size_t length = size_t(PyUnicode_GET_LENGTH(text));
        if (PyUnicode_IS_ASCII(text)) {
            view_ = {reinterpret_cast<const char*>(data), length};
            return;
        }
        const int kind = int(PyUnicode_KIND(text));
        utf8_.expect(bytes_of_one(kind) * length + kAtOnce);
        for (size_t at = 0; at < length; at += kStretch) {
            const size_t count = std::min(length - at, kStretch);
            utf8_.grown_to(to_utf8(kind, data, at, count, utf8_.room_for(bytes_of_one(kind) * count + kAtOnce)));
        }
        view_ = {reinterpret_cast<const char*>(utf8_.data()), utf8_.size()};
    }

    std::string_view view() const { return view_; }

  private:
    static constexpr size_t kStretch = 65'536;  // characters

    Growing<uint8_t> utf8_;
    std::string_view view_;
};

}  // namespace tinylm
