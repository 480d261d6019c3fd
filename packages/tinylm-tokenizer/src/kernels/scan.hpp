// The scanner: UTF-8 text to pieces, for the patterns of patterns.py. From a place where a piece starts, 64 bytes become
// bit masks (scan_masks.hpp), and all piece starts among them that can be told fall out of bit arithmetic; the last of
// them begins the next window. What the masks cannot tell (a piece longer than a window, and the rare cases in `stop`
// below) next_piece does (scan_reference.hpp), which is also what the tests compare with.
//
// Shorthand of bit arithmetic, for masks of bytes:
//     m << 1               the place behind: (a << 1) & b is "b with an a before it"
//     m & ~(m << 1)        the first byte of every run
//     (m + firsts) & ~m    the byte behind each run of m whose first byte is in firsts: the addition carries through it
#pragma once

#include "scan_masks.hpp"
#include "scan_reference.hpp"

namespace tinylm {

// What next_piece of a pattern does differently, as far as the masks are concerned.
template <Pattern pattern>
struct Traits {
    static constexpr bool o200k = pattern == Pattern::o200k;
    static constexpr bool alone = pattern == Pattern::digits_gpt2;             // numbers cut the text first
    static constexpr bool gpt2 = pattern == Pattern::gpt2 || alone;            // only " " goes with what is behind it
    static constexpr bool single = pattern == Pattern::qwen2 || alone;         // every number is a piece
    static constexpr bool triples = !gpt2 && !single;                          // three numbers are a piece
    static constexpr bool whole_at_end = pattern == Pattern::cl100k;           // white space at the end is one piece
};

inline size_t ones(uint64_t mask) {  // std::popcount, which calls a function where a processor may lack the instruction
    mask -= mask >> 1 & 0x5555555555555555;
    mask = (mask & 0x3333333333333333) + (mask >> 2 & 0x3333333333333333);
    return ((mask + (mask >> 4)) & 0x0F0F0F0F0F0F0F0F) * 0x0101010101010101 >> 56;
}

inline uint64_t behind(uint64_t runs, uint64_t firsts) { return (runs + firsts) & ~runs; }

// White space of the patterns that look at line ends: up to the last line end, then all but the last character, then
// that one, which starts a piece whether or not a word takes it along. word: what is not white space.
template <Pattern pattern>
uint64_t white_starts(const Masks& m, uint64_t word, uint64_t open, bool at_end) {
    using T = Traits<pattern>;
    const uint64_t white = m.space | m.newline;
    if (T::gpt2) {
        const uint64_t kept = T::alone ? word & ~m.number : word;
        return (white & ~(white << 1)) | (white & (kept >> 1));
    }
    const uint64_t eaten = m.newline & (m.other << 1);  // line ends that belong to the punctuation before them
    const uint64_t after_eaten = behind(m.newline, eaten) & m.space;
    uint64_t starts = (white & ~(white << 1) & ~eaten) | after_eaten | (m.space & (word >> 1));
    // Space behind a line end starts a piece if that was the last line end of the white space.
    uint64_t after_line = m.space & (m.newline << 1) & ~after_eaten;
    if (at_end ? T::whole_at_end : true) after_line &= ~open;
    if (behind(m.space, after_line) & m.newline) [[unlikely]] {
        for (uint64_t left = after_line; left; left &= left - 1) {
            const uint64_t first = left & (0 - left);
            if (behind(m.space, first) & m.newline) after_line &= ~first;
        }
    }
    return starts | after_line;
}

// The bits of the piece starts among the 64 bytes at `text`, of which `size` are there; bit 0 is one of them. at_end:
// the text ends after these; otherwise `size` becomes smaller where the masks do not tell more. The starts that come
// out are all up to the highest of them.
template <Pattern pattern, bool at_once>
[[gnu::always_inline]] inline uint64_t starts_of(const uint8_t* text, size_t size, bool& at_end, const uint8_t* kinds) {
    using T = Traits<pattern>;
    uint64_t valid = size < kWindow ? (uint64_t(1) << size) - 1 : ~uint64_t(0);
    Masks m = masks_of<T::o200k, at_once>(text, valid, kinds);

    // What is left to next_piece: white space beyond ASCII; with triples, numbers beyond ASCII; in o200k a mark behind
    // punctuation, upper case behind a caseless letter, and "/" behind line ends that punctuation took along.
    uint64_t stop = m.space & m.continuation;
    if (T::triples) stop |= m.number & m.continuation;
    if (T::o200k) {
        stop |= (m.mark & (m.other << 1)) | (m.upper & ((m.caseless | m.mark) << 1));
        stop |= behind(m.newline, m.newline & (m.other << 1)) & m.slash;
    }
    // And a quote if the text is not there yet that would make it a contraction.
    if (!at_end && size < kWindow + 2) stop |= size < 2 ? m.quote : m.quote & ~uint64_t(0) << (size - 2);
    if (stop) [[unlikely]] {
        // Of a character of several bytes the first one.
        uint64_t first = stop & (0 - stop);
        while (first & m.continuation) first >>= 1;
        valid &= first - 1;
        at_end = false;
        for (uint64_t* mask : {&m.upper, &m.lower, &m.caseless, &m.mark, &m.number, &m.space, &m.newline, &m.other,
                               &m.blank, &m.quote, &m.slash, &m.continuation})
            *mask &= valid;
    }

    const uint64_t letter = m.upper | m.lower | m.caseless | m.mark, characters = ~m.continuation;
    const uint64_t word = letter | m.number | m.other;
    const uint64_t letter_first = letter & characters & ~(letter << 1);
    const uint64_t other_first = m.other & characters & ~(m.other << 1) & ~(m.blank << 1);
    uint64_t starts = other_first;
    if (T::gpt2) {
        starts |= letter_first & ~(m.blank << 1);
    } else {
        // One character of punctuation goes with the letters behind it, unless a blank before it has taken it.
        const uint64_t after_one = ((other_first << 1) + m.continuation) & characters & ~m.other;
        starts |= letter_first & ~(m.space << 1) & ~after_one;
    }
    const uint64_t number_first = m.number & ~(m.number << 1);
    if (T::single) {
        starts |= m.number & characters;
    } else if (T::triples) {
        starts |= number_first;
        const uint64_t fourth = m.number & m.number << 1 & m.number << 2 & m.number << 3;
        for (uint64_t next = number_first << 3 & fourth; next; next = next << 3 & fourth) starts |= next;
    } else {
        starts |= number_first & characters & ~(m.blank << 1);
    }
    const uint64_t not_space = valid & ~m.space;
    const uint64_t open = not_space ? m.space & ~(~uint64_t(0) >> std::countl_zero(not_space)) : m.space;
    starts |= white_starts<pattern>(m, word, open, at_end);
    if (T::o200k) starts |= m.upper & characters & (m.lower << 1);

    // Contractions. In o200k they go with the word before them, otherwise they are pieces of their own.
    uint64_t quotes = m.quote & (letter >> 1) & (T::o200k ? letter << 1 : other_first);
    for (int last = -1; quotes; quotes &= quotes - 1) {
        const int at = std::countr_zero(quotes);
        if (T::o200k && at == last) continue;
        Reader reader(text + at, 4, kinds);
        const int length = int(contraction(reader, 0, !T::gpt2));
        if (!length) continue;
        const uint64_t bytes = ((uint64_t(1) << length) - 1) << at;
        starts &= T::o200k ? ~bytes : ~(bytes & (bytes << 1));
        last = at + length;
        if (last < int(kWindow)) starts |= uint64_t(1) << last;
    }
    if (T::o200k && !at_end) starts &= ~(m.quote & ~(valid >> 1));  // nobody has seen what stands behind it
    return starts & valid;
}

// Cuts `size` bytes of text piece by piece: `next` gives the ends of the next pieces, up to 64 + kWindow of them. final:
// the text ends there; otherwise pieces that more text could change are left, and `position` is where they start.
template <Pattern pattern>
class FastScanner {
  public:
    static constexpr size_t kBatch = 64, kMost = kBatch + kWindow + 8;

    FastScanner(const uint8_t* text, size_t size, bool final)
        : text_(text), size_(size), final_(final), kinds_(KindTable::get()) {}

    size_t position() const { return position_; }

    // Fills `ends` (room for kMost) and returns how many; 0: there are no more.
    size_t next(size_t* ends) {
#if defined(TINYLM_X86)
        if (kAvx512) return next_at_once(ends);
#endif
        return next_by<false>(ends);
    }

  private:
#if defined(TINYLM_X86)
    [[gnu::target("avx512f,avx512bw,bmi,bmi2")]] size_t next_at_once(size_t* ends) { return next_by<true>(ends); }
#endif

    // at_once: the masks come from comparisons of all 64 bytes.
    template <bool at_once>
    [[gnu::always_inline]] size_t next_by(size_t* ends) {
        size_t count = 0;
        while (count < kBatch && position_ < size_) {
            const size_t left = size_ - position_;
            const uint8_t* window = text_ + position_;
            uint8_t copy[kWindow + 16];
            if (left < sizeof copy) {
                std::memset(copy, 0, sizeof copy);
                std::memcpy(copy, window, left);
                window = copy;
            }
            bool at_end = final_ && left <= kWindow;
            uint64_t starts = starts_of<pattern, at_once>(window, left, at_end, kinds_) & ~uint64_t(1);
            const size_t before = position_;
            if (starts) position_ += size_t(63 - std::countl_zero(starts));
            // Eight at a time, more than there are: how many, no processor could guess.
            size_t* next = ends + count;
            count += ones(starts);
            while (starts)
                for (int i = 0; i < 8; i++, starts &= starts - 1)
                    *next++ = before + size_t(std::countr_zero(starts | uint64_t(1) << 63));
            if (at_end) {
                ends[count++] = position_ = size_;
            } else if (position_ == before) {
                Reader reader(text_, size_, kinds_);
                const size_t end = next_piece(pattern, reader, position_);
                if (reader.saw_end() && !final_) break;
                ends[count++] = position_ = end;
            }
        }
        return count;
    }

    const uint8_t* text_;
    size_t size_;
    bool final_;
    const uint8_t* kinds_;
    size_t position_ = 0;
};

// Call run(FastScanner<pattern>) with the scanner of a pattern that is known only at run time.
template <class Run>
void with_scanner(Pattern pattern, const uint8_t* text, size_t size, bool final, Run run) {
    switch (pattern) {
        case Pattern::gpt2: return run(FastScanner<Pattern::gpt2>(text, size, final));
        case Pattern::cl100k: return run(FastScanner<Pattern::cl100k>(text, size, final));
        case Pattern::o200k: return run(FastScanner<Pattern::o200k>(text, size, final));
        case Pattern::llama3: return run(FastScanner<Pattern::llama3>(text, size, final));
        case Pattern::qwen2: return run(FastScanner<Pattern::qwen2>(text, size, final));
        case Pattern::digits_gpt2: return run(FastScanner<Pattern::digits_gpt2>(text, size, final));
    }
}

// Call emit(std::string_view) with each piece of `text` in order.
template <class Emit>
void for_each_piece(Pattern pattern, std::string_view text, Emit emit) {
    with_scanner(pattern, reinterpret_cast<const uint8_t*>(text.data()), text.size(), true, [&](auto scanner) {
        size_t ends[scanner.kMost], start = 0;
        while (const size_t count = scanner.next(ends)) {
            for (size_t i = 0; i < count; i++) {
                emit(text.substr(start, ends[i] - start));
                start = ends[i];
            }
        }
    });
}

}  // namespace tinylm
