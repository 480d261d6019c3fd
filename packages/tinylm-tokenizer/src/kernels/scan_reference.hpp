// Cutting UTF-8 text into pieces without a regular expression engine: the patterns of patterns.py, one function each,
// with the Unicode classes of unicode.hpp. The same pieces as _text/pretokenize.py gives.
//
// This is the readable reference: one piece, one character at a time. scan.hpp is quicker and falls back on it.
// Text must be valid UTF-8 (what comes from a Python string is; check bytes first).
#pragma once

#include <cstring>
#include <optional>
#include <string_view>

#include "unicode.hpp"

namespace tinylm {

enum class Pattern { gpt2, cl100k, o200k, llama3, qwen2, digits_gpt2 };

// The names of patterns.py; "digits_gpt2" is the two stages ("digits", "gpt2").
inline std::optional<Pattern> pattern_named(std::string_view name) {
    if (name == "gpt2") return Pattern::gpt2;
    if (name == "cl100k") return Pattern::cl100k;
    if (name == "o200k") return Pattern::o200k;
    if (name == "llama3") return Pattern::llama3;
    if (name == "qwen2") return Pattern::qwen2;
    if (name == "digits_gpt2") return Pattern::digits_gpt2;
    return std::nullopt;
}

// Text that is read one character at a time.
class Reader {
  public:
    Reader(const uint8_t* text, size_t size, const uint8_t* kinds = KindTable::get())
        : text_(text), size_(size), kinds_(kinds) {}

    size_t size() const { return size_; }

    // Whether anybody has looked past the end: if more text is to come, what was found then may change.
    bool saw_end() const { return saw_end_; }

    int byte(size_t at) {
        if (at < size_) return text_[at];
        saw_end_ = true;
        return -1;
    }

    uint8_t kind(size_t at) {
        if (at < size_) return kinds_[decode_utf8(text_ + at).code];
        saw_end_ = true;
        return kEnd;
    }

    size_t next(size_t at) const { return at + decode_utf8(text_ + at).length; }

    size_t previous(size_t at) const {
        do at--;
        while ((text_[at] & 0xC0) == 0x80);
        return at;
    }

    // Where the run of blanks that starts at `at` ends, or where its last few begin.
    size_t blanks(size_t at) const {
        constexpr uint64_t eight = 0x2020202020202020;
        for (uint64_t bytes; at + 8 <= size_ && (std::memcpy(&bytes, text_ + at, 8), bytes == eight);) at += 8;
        return at;
    }

    // Where the run of characters of these kinds that starts at `at` ends (at most `limit` characters).
    size_t run(size_t at, uint8_t kinds, size_t limit = SIZE_MAX) {
        while (limit-- > 0 && (kind(at) & kinds)) at = next(at);
        return at;
    }

  private:
    const uint8_t* text_;
    size_t size_;
    const uint8_t* kinds_;
    bool saw_end_ = false;
};

// Where the contraction at `at` ends ('s 't 'm 'd 'll 've 're), or 0. any_case: also 'S, and U+017F, the long s, which
// folds to s.
inline size_t contraction(Reader& text, size_t at, bool any_case) {
    if (text.byte(at) != '\'') return 0;
    auto letter = [&](size_t place) {
        const int byte = text.byte(place);
        return any_case && byte >= 'A' && byte <= 'Z' ? byte + ('a' - 'A') : byte;
    };
    const int first = letter(at + 1);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
    if (first == 'l' && letter(at + 2) == 'l') return at + 3;
    if ((first == 'v' || first == 'r') && letter(at + 2) == 'e') return at + 3;
    if (any_case && first == 0xC5 && text.byte(at + 2) == 0xBF) return at + 3;
    return 0;
}

// White space: up to its last line end (where line ends count); otherwise all of it but the last character, which
// goes with the word behind it; all of it at the end of the text.
inline size_t white_piece(Reader& text, size_t start, bool line_ends, bool whole_at_end) {
    size_t end = start, last = start, after_line = 0;
    for (uint8_t kind; (kind = text.kind(end)) & kWhite;) {
        const size_t blanks = text.blanks(end);
        last = blanks > end ? blanks - 1 : end;
        end = text.next(last);
        if (kind == kNewline) after_line = end;
    }
    if (end == text.size() && whole_at_end) return end;
    if (line_ends && after_line) return after_line;
    return end == text.size() || last == start ? end : last;
}

// "gpt2": 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// alone: after "digits", every number is a piece and every text between two numbers a text of its own.
inline size_t gpt2_piece(Reader& text, size_t start, bool alone) {
    if (size_t end = contraction(text, start, false)) return end;
    const size_t word = start + (text.byte(start) == ' ');
    const uint8_t kind = text.kind(word);
    if (kind & kLetter) return text.run(word, kLetter);
    if ((kind & kNumber) && !alone) return text.run(word, kNumber);
    if (kind & (kOther | kMark)) return text.run(word, kOther | kMark);
    if (text.kind(start) & kNumber) return text.next(start);
    if (alone) {
        const size_t end = text.run(start, kWhite);
        if (text.kind(end) & kNumber) return end;
    }
    return white_piece(text, start, false, true);
}

// Numbers, punctuation and white space as the newer patterns have them: \p{N}{1,3}, then " ?[^\s\p{L}\p{N}]+[\r\n]*"
// (o200k: also "/" among the line ends), then white space.
inline size_t other_piece(Reader& text, size_t start, size_t digits, bool slashes, bool whole_at_end) {
    if (text.kind(start) & kNumber) return text.run(start, kNumber, digits);
    size_t end = start + (text.byte(start) == ' ');
    if (text.kind(end) & (kOther | kMark)) {
        end = text.run(end, kOther | kMark);
        while ((text.kind(end) & kNewline) || (slashes && text.byte(end) == '/')) end++;
        return end;
    }
    return white_piece(text, start, true, whole_at_end);
}

// "cl100k", "llama3" and "qwen2": contractions, words with one character of any kind in front, then the others.
inline size_t cl100k_piece(Reader& text, size_t start, size_t digits, bool whole_at_end) {
    if (size_t end = contraction(text, start, true)) return end;
    const uint8_t kind = text.kind(start);
    const size_t word = kind & (kLetter | kNumber | kNewline) ? start : text.next(start);
    if (!(kind & kNumber) && (text.kind(word) & kLetter)) return text.run(word, kLetter);
    return other_piece(text, start, digits, false, whole_at_end);
}

// "o200k": [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+, and if there is no such word the same with the
// + on the first set and the * on the second. 0: neither. Caseless letters and marks are in both sets, so a run of
// upper case with nothing lower behind it gives back characters up to its last caseless one: "中AB" is "中", "AB".
inline size_t o200k_word(Reader& text, size_t start) {
    constexpr uint8_t both = kCaseless | kMark;
    size_t end = start, after_caseless = 0;
    for (uint8_t kind; (kind = text.kind(end)) & (kUpper | both);) {
        end = text.next(end);
        if (kind & both) after_caseless = end;
    }
    if (text.kind(end) & kLower) return text.run(end, kLower | both);
    if (after_caseless) return after_caseless;
    return end > start ? end : 0;
}

inline size_t o200k_piece(Reader& text, size_t start) {
    const uint8_t kind = text.kind(start);
    size_t end = 0;
    if (kind & (kLetter | kMark))
        end = o200k_word(text, start);
    else if (kind & (kSpace | kOther))
        end = o200k_word(text, text.next(start));
    if (!end) return other_piece(text, start, 3, true, false);
    const size_t suffix = contraction(text, end, true);
    return suffix ? suffix : end;
}

// Where the piece that starts at `start` (before the end) ends.
inline size_t next_piece(Pattern pattern, Reader& text, size_t start) {
    switch (pattern) {
        case Pattern::gpt2: return gpt2_piece(text, start, false);
        case Pattern::digits_gpt2: return gpt2_piece(text, start, true);
        case Pattern::cl100k: return cl100k_piece(text, start, 3, true);
        case Pattern::llama3: return cl100k_piece(text, start, 3, false);
        case Pattern::qwen2: return cl100k_piece(text, start, 1, false);
        case Pattern::o200k: return o200k_piece(text, start);
    }
    return text.size();
}

// Call emit(std::string_view) with each piece of `text` in order, as `next_piece` has them.
template <class Emit>
void for_each_piece_reference(Pattern pattern, std::string_view text, Emit emit) {
    Reader reader(reinterpret_cast<const uint8_t*>(text.data()), text.size());
    for (size_t start = 0; start < text.size();) {
        const size_t end = next_piece(pattern, reader, start);
        emit(text.substr(start, end - start));
        start = end;
    }
}

}  // namespace tinylm
