// What kind of character a code point is, as far as the patterns of scan.hpp tell them apart. The table is pinned to
// Unicode 16.0 (unicode_runs.hpp; unicode_runs.py says where it comes from).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "unicode_runs.hpp"

namespace tinylm {

// One bit each, so that a set of kinds is a sum of them.
enum Kind : uint8_t {
    kEnd = 0,         // no character: the text has ended
    kUpper = 1,       // letters: upper and title case
    kLower = 2,       // letters: lower case
    kCaseless = 4,    // letters: all others
    kMark = 8,        // accents and the like
    kNumber = 16,     //
    kSpace = 32,      // White_Space without the two below
    kNewline = 64,    // "\r" and "\n"
    kOther = 128,     // punctuation, symbols, what is not assigned
    kLetter = kUpper | kLower | kCaseless,
    kWhite = kSpace | kNewline,
};

constexpr uint32_t kCodePoints = 0x110000;

// Kind of each code point, one byte each: most of its pages are never touched, and one look-up is one load.
class KindTable {
  public:
    // Made at first use; safe to call from any thread.
    static const uint8_t* get() {
        static const KindTable table;
        return table.kinds_.get();
    }

  private:
    KindTable() : kinds_(new uint8_t[kCodePoints]) {
        uint32_t start = 0, length = 0;
        for (const char* run = kUnicodeRuns; *run; run++) {
            if (*run >= '0' && *run <= '9') {
                length = 10 * length + uint32_t(*run - '0');
            } else {
                std::memset(&kinds_[start], kind_of(*run), length);
                start += length;
                length = 0;
            }
        }
        kinds_['\r'] = kinds_['\n'] = kNewline;
    }

    static Kind kind_of(char letter) {
        switch (letter) {
            case 'U': return kUpper;
            case 'l': return kLower;
            case 'o': return kCaseless;
            case 'M': return kMark;
            case 'N': return kNumber;
            case 's': return kSpace;
            default: return kOther;
        }
    }

    std::unique_ptr<uint8_t[]> kinds_;
};

// The code point of the UTF-8 character that starts at `text` (which must be valid) and its length in bytes.
struct Decoded {
    uint32_t code;
    uint32_t length;
};

inline Decoded decode_utf8(const uint8_t* text) {
    const uint32_t first = text[0];
    if (first < 0x80) return {first, 1};
    if (first < 0xE0) return {(first & 0x1F) << 6 | (text[1] & 0x3Fu), 2};
    if (first < 0xF0) return {(first & 0x0F) << 12 | (text[1] & 0x3Fu) << 6 | (text[2] & 0x3Fu), 3};
    return {(first & 0x07) << 18 | (text[1] & 0x3Fu) << 12 | (text[2] & 0x3Fu) << 6 | (text[3] & 0x3Fu), 4};
}

}  // namespace tinylm
