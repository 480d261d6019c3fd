// Where a piece can be cut before it is merged: between two characters that no token holds side by side. Whatever merges,
// nothing ever reaches over such a border, so the parts on either side of it can be looked up, merged and remembered by
// themselves, with the same ids. In cl100k that is so for 19 of 20 neighbours in Chinese and Japanese text: its pieces
// are long and hardly ever come again, their parts, mostly one or two characters, come all the time.
//
// Does not know pieces and ids: byte_bpe.hpp cuts. The bits may miss a border; they never show one that is none.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace tinylm {

class Borders {
  public:
    Borders() : whole_(kWhole / 64), partial_(kPartial / 64) {}

    // Notes what stands side by side in a token. At either end of it a character may be there in part: then its last byte
    // (left of a border) or its first one (right of it) stands for it, which no whole character beyond ASCII can be.
    void add(std::string_view token) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(token.data());
        uint32_t left = 0;
        bool left_whole = false;
        for (size_t at = 0, end; at < token.size(); at = end) {
            end = at + 1;
            while (end < token.size() && (bytes[end] & 0xC0) == 0x80) end++;
            const bool whole = (bytes[at] & 0xC0) != 0x80 && size_of(bytes[at]) == end - at;
            const uint32_t character = whole ? character_of(bytes + at, end - at) : 0;
            if (at > 0) {
                const uint64_t sum = kLeft * left + kRight * (whole ? character : bytes[at]);
                if (left_whole && whole)
                    whole_[sum >> kWholeShift >> 6] |= uint64_t(1) << (sum >> kWholeShift & 63);
                else
                    partial_[sum >> kPartialShift >> 6] |= uint64_t(1) << (sum >> kPartialShift & 63);
            }
            left_whole = whole;
            left = whole ? character : bytes[end - 1];
        }
    }

    // Between two characters of ASCII it never cuts, so that tokens of nothing else need not be added.
    // Calls part(start, end) for each part of text[start..end), which is valid UTF-8; 3 bytes behind it must be readable.
    template <class Part>
    void cut(const uint8_t* text, size_t start, size_t end, Part part) const {
        uint64_t left = 0, left_last = 0;
        for (size_t at = start, next; at < end; at = next) {
            const size_t size = size_of(text[at]);
            next = at + size;
            const uint64_t character = character_of(text + at, size);
            if (at > start && (text[at - 1] | text[at]) >= 0x80) {
                const uint64_t right = kRight * character, right_first = kRight * text[at];
                if (!(whole(left + right) | partial(left + right_first) | partial(left_last + right) |
                      partial(left_last + right_first))) {
                    part(start, at);
                    start = at;
                }
            }
            left = kLeft * character;
            left_last = kLeft * text[next - 1];
        }
        part(start, end);
    }

  private:
    static constexpr uint64_t kLeft = 0x9E3779B97F4A7C15, kRight = 0xD6E8FEB86659FD93;
    static constexpr int kWholeShift = 64 - 20, kPartialShift = 64 - 15;
    static constexpr size_t kWhole = size_t(1) << 20, kPartial = size_t(1) << 15;  // bits: what tokens hold is few

    static size_t size_of(uint8_t first) { return first < 0x80 ? 1 : size_t(std::countl_one(first)); }

    static uint32_t character_of(const uint8_t* text, size_t size) {
        const uint32_t bytes = text[0] | uint32_t(text[1]) << 8 | uint32_t(text[2]) << 16 | uint32_t(text[3]) << 24;
        return bytes & uint32_t((uint64_t(1) << 8 * size) - 1);
    }

    uint64_t whole(uint64_t sum) const { return whole_[sum >> kWholeShift >> 6] >> (sum >> kWholeShift & 63) & 1; }
    uint64_t partial(uint64_t sum) const {
        return partial_[sum >> kPartialShift >> 6] >> (sum >> kPartialShift & 63) & 1;
    }

    std::vector<uint64_t> whole_, partial_;
};

}  // namespace tinylm
