// 64 bytes of text as bit masks: bit i of a mask says whether byte i belongs to a character of that kind. All bytes of a
// character of several bytes have its kind. scan.hpp finds the piece starts in them by bit arithmetic.
#pragma once

#include <bit>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "cpu.hpp"
#include "unicode.hpp"

namespace tinylm {

constexpr size_t kWindow = 64;

struct Masks {
    uint64_t upper = 0, lower = 0, caseless = 0;  // only told apart where `cases` is asked for; otherwise all in `lower`
    uint64_t mark = 0;                            // only where `cases` is asked for; otherwise in `other`
    uint64_t number = 0, space = 0, newline = 0, other = 0;
    uint64_t blank = 0;         // " "
    uint64_t quote = 0;         // "'"
    uint64_t slash = 0;         // "/"
    uint64_t continuation = 0;  // all but the first byte of a character
};

// What a byte comparison gives for all 64 bytes. One bit a byte.
struct AsciiMasks {
    uint64_t upper, lower, number, space, newline, blank, quote, slash, high, continuation;

    bool operator==(const AsciiMasks&) const = default;
};

#if defined(__SSE2__)

inline AsciiMasks ascii_masks(const uint8_t* text) {
    AsciiMasks masks{};
    for (int part = 0; part < 4; part++) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(text + 16 * part));
        auto bits = [part](__m128i found) { return uint64_t(uint32_t(_mm_movemask_epi8(found))) << (16 * part); };
        auto equal = [&](char byte) { return _mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte)); };
        // first ≤ byte < first + count, by one signed comparison: the range is moved down to the smallest numbers
        auto range = [&](char first, int count) {
            const __m128i moved = _mm_add_epi8(bytes, _mm_set1_epi8(char(-128 - first)));
            return _mm_cmplt_epi8(moved, _mm_set1_epi8(char(-128 + count)));
        };
        const __m128i newline = _mm_or_si128(equal('\n'), equal('\r'));
        masks.upper |= bits(range('A', 26));
        masks.lower |= bits(range('a', 26));
        masks.number |= bits(range('0', 10));
        masks.newline |= bits(newline);
        masks.blank |= bits(equal(' '));
        masks.space |= bits(_mm_andnot_si128(newline, _mm_or_si128(equal(' '), range('\t', 5))));
        masks.quote |= bits(equal('\''));
        masks.slash |= bits(equal('/'));
        masks.high |= bits(bytes);
        masks.continuation |= bits(_mm_cmplt_epi8(bytes, _mm_set1_epi8(-64)));
    }
    return masks;
}

#else

inline AsciiMasks ascii_masks(const uint8_t* text) {
    AsciiMasks masks{};
    for (size_t i = 0; i < kWindow; i++) {
        const uint8_t byte = text[i];
        auto set = [i](uint64_t& mask, bool found) { mask |= uint64_t(found) << i; };
        const bool newline = byte == '\n' || byte == '\r';
        set(masks.upper, uint8_t(byte - 'A') < 26);
        set(masks.lower, uint8_t(byte - 'a') < 26);
        set(masks.number, uint8_t(byte - '0') < 10);
        set(masks.newline, newline);
        set(masks.blank, byte == ' ');
        set(masks.space, !newline && (byte == ' ' || uint8_t(byte - '\t') < 5));
        set(masks.quote, byte == '\'');
        set(masks.slash, byte == '/');
        set(masks.high, byte >= 0x80);
        set(masks.continuation, (byte & 0xC0) == 0x80);
    }
    return masks;
}

#endif

#if defined(TINYLM_X86)

// The same with one comparison for all 64 bytes. For processors that can (kAvx512).
[[gnu::target("avx512f,avx512bw")]] inline uint64_t equal_at_once(__m512i bytes, char byte) {
    return _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(byte));
}

[[gnu::target("avx512f,avx512bw")]] inline uint64_t range_at_once(__m512i bytes, char first, char count) {
    return _mm512_cmplt_epu8_mask(_mm512_sub_epi8(bytes, _mm512_set1_epi8(first)), _mm512_set1_epi8(count));
}

[[gnu::target("avx512f,avx512bw")]] inline AsciiMasks ascii_masks_at_once(const uint8_t* text) {
    const __m512i bytes = _mm512_loadu_si512(text);
    AsciiMasks masks;
    masks.upper = range_at_once(bytes, 'A', 26);
    masks.lower = range_at_once(bytes, 'a', 26);
    masks.number = range_at_once(bytes, '0', 10);
    masks.newline = equal_at_once(bytes, '\n') | equal_at_once(bytes, '\r');
    masks.blank = equal_at_once(bytes, ' ');
    masks.space = (masks.blank | range_at_once(bytes, '\t', 5)) & ~masks.newline;
    masks.quote = equal_at_once(bytes, '\'');
    masks.slash = equal_at_once(bytes, '/');
    masks.high = uint64_t(_mm512_movepi8_mask(bytes));
    masks.continuation = uint64_t(_mm512_cmplt_epi8_mask(bytes, _mm512_set1_epi8(-64)));
    return masks;
}

#endif

// The masks of the 64 bytes at `text`, of which the ones in `valid` count. text[0] starts a character, and so do up to
// three bytes behind the 64 belong to it: they must be readable.
template <bool cases, bool at_once>
[[gnu::always_inline]] inline Masks masks_of(const uint8_t* text, uint64_t valid, const uint8_t* kinds) {
    AsciiMasks ascii;
#if defined(TINYLM_X86)
    if constexpr (at_once)
        ascii = ascii_masks_at_once(text);
    else
#endif
        ascii = ascii_masks(text);
    Masks masks;
    const uint64_t high = ascii.high & valid;
    masks.upper = cases ? ascii.upper & valid : 0;
    masks.lower = (cases ? ascii.lower : ascii.lower | ascii.upper | high) & valid;
    masks.caseless = cases ? high : 0;
    masks.number = ascii.number & valid;
    masks.space = ascii.space & valid;
    masks.newline = ascii.newline & valid;
    masks.blank = ascii.blank & valid;
    masks.quote = ascii.quote & valid;
    masks.slash = ascii.slash & valid;
    masks.continuation = ascii.continuation & valid;
    masks.other = valid & ~(ascii.upper | ascii.lower | ascii.number | ascii.space | ascii.newline | high);

    // Beyond ASCII every character is taken for a letter, as most are, and those that are not are put right.
    for (uint64_t firsts = high & ~masks.continuation; firsts; firsts &= firsts - 1) {
        const int at = std::countr_zero(firsts);
        const Decoded character = decode_utf8(text + at);
        const uint8_t kind = kinds[character.code];
        if (kind & (cases ? kCaseless : kLetter)) continue;
        const uint64_t bytes = (((uint64_t(1) << character.length) - 1) << at) & valid;
        (cases ? masks.caseless : masks.lower) &= ~bytes;
        if (cases && (kind & kUpper)) masks.upper |= bytes;
        if (cases && (kind & kLower)) masks.lower |= bytes;
        if (kind & kMark) (cases ? masks.mark : masks.other) |= bytes;
        if (kind & kNumber) masks.number |= bytes;
        if (kind & kSpace) masks.space |= bytes;
        if (kind & kOther) masks.other |= bytes;
    }
    return masks;
}

}  // namespace tinylm
