// A Python str as stretches of UTF-8, without making a UTF-8 copy of the whole: ASCII as it lies in memory, every other
// kind converted a few thousand characters at a time. Needs no GIL once it is made, as long as somebody keeps the str.
#pragma once

#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "ids.hpp"

namespace tinylm {

struct LoneSurrogate {};

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
        const size_t wanted = std::min(length_ - read_, stretch_ << (ascii_ ? 4 : 0));
        size_t used;
        if (ascii_) {
            end_ = read_ += wanted;
            used = use(data_ + begin_, end_ - begin_, read_ == length_, length_ + 1 - begin_);  // + 1: Python's NUL
        } else {
            if (begin_) std::memmove(utf8_.data(), utf8_.data() + begin_, end_ - begin_);
            end_ -= begin_;
            begin_ = 0;
            utf8_.grown_to(utf8_.data() + end_);
            utf8_.room_for((kind_ == 1 ? 2 : kind_ == 2 ? 3 : 4) * wanted + kReadable);
            convert(wanted);
            std::memset(utf8_.data() + end_, 0, kReadable);
            used = use(utf8_.data(), end_, read_ == length_, end_ + kReadable);
        }
        begin_ += used;
        stretch_ = used ? kStretch : 2 * stretch_;  // of one endless piece each byte is seen about twice
        return true;
    }

  private:
    static constexpr size_t kStretch = 8192;  // characters: what they become stays in the nearest caches
    static constexpr size_t kReadable = 16;   // bytes behind the text that may be read

    void convert(size_t count) {
        uint8_t* out = utf8_.data() + end_;
        switch (kind_) {
            case 1: out = convert_from(data_ + read_, count, out); break;
            case 2: out = convert_from(reinterpret_cast<const uint16_t*>(data_) + read_, count, out); break;
            default: out = convert_from(reinterpret_cast<const uint32_t*>(data_) + read_, count, out);
        }
        read_ += count;
        end_ = size_t(out - utf8_.data());
    }

    template <class Unit>
    static uint8_t* convert_from(const Unit* text, size_t count, uint8_t* out) {
        constexpr size_t at_once = 8 / sizeof(Unit);
        constexpr uint64_t ones = ~uint64_t(0) / Unit(~Unit(0));  // 1 in each unit of 64 bits
        for (const Unit* end = text + count; text < end;) {
            if (size_t(end - text) >= at_once) {
                uint64_t units;
                std::memcpy(&units, text, 8);
                if (!(units & ones * Unit(~Unit(0x7F)))) {
                    for (size_t i = 0; i < at_once; i++) out[i] = uint8_t(text[i]);
                    out += at_once;
                    text += at_once;
                    continue;
                }
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

    bool ascii_;
    int kind_;  // bytes a character
    const uint8_t* data_;
    size_t length_, read_ = 0;        // characters
    size_t begin_ = 0, end_ = 0;      // bytes that nobody has used yet: of utf8_, or of data_ itself
    size_t stretch_ = kStretch;
    Growing<uint8_t> utf8_;
};

}  // namespace tinylm
