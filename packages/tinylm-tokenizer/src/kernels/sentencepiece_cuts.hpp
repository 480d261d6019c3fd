// Where a normalised text may be cut so that its parts can be encoded one by one. No Python here. Next:
// sentencepiece.hpp.
#pragma once

#include <array>
#include <bit>
#include <vector>

#include "sentencepiece_text.hpp"

namespace tinylm::sentencepiece {

// Which places of a text no piece can cross: where no piece holds the two characters beside it in a row.
class Cuts {
  public:
    // words: before a "▁" in any case.
    Cuts(const std::vector<std::string>& texts, bool words) : words_(words) {
        std::vector<uint64_t> pairs;
        cut_.fill(1);
        for (const std::string& text : texts) {
            uint32_t before = 0;
            for (size_t i = 0, size; i < text.size(); i += size) {
                size = std::min(text.size() - i, character_size(static_cast<unsigned char>(text[i])));
                const uint32_t character = pack(&text[i], size);
                if (i > 0 && !(words && character == ' ')) {
                    pairs.push_back(hash(before, character));
                    if (before < 128 && character < 128) cut_[before << 7 | character] = 0;
                }
                before = character;
            }
        }
        size_t size = 1024;
        while (size < 16 * pairs.size()) size *= 2;
        shift_ = 64 - std::countr_zero(size);
        bits_.assign(size / 64, 0);
        for (uint64_t pair : pairs) bits_[pair >> shift_ >> 6] |= 1ull << (pair >> shift_ & 63);
    }

    // Bit i: a part begins at block[i], for i < size <= 64. before: the character in front of the block, then of the
    // next. ASCII text goes 8 bytes at a time and without branches: no processor foresees where a part ends. 8 bytes
    // behind the text can be read.
    uint64_t starts(const char* block, size_t size, uint32_t& before) const {
        uint64_t out = 0;
        for (size_t i = 0; i < size;) {
            const auto byte = static_cast<unsigned char>(block[i]);
            if (i <= 56 && before < 128 && !(load(block + i) & kHighs)) {
                uint64_t eight = 0;
                for (size_t j = 0; j < 8; j++) {
                    const auto right = static_cast<unsigned char>(block[i + j]);
                    eight |= uint64_t(cut_[before << 7 | right]) << j;
                    before = right;
                }
                out |= eight << i;
                i += 8;
                continue;
            }
            const size_t length = character_size(byte);
            if ((byte & 0xC0) != 0x80) {  // else: the rest of a character that began in the block before
                const uint32_t character = pack(block + i, length);
                out |= uint64_t(!joined(before, character)) << i;
                before = character;
                i += length;
            } else {
                i++;
            }
        }
        return size < 64 ? out & ((1ull << size) - 1) : out;
    }

  private:
    // May err, but only towards yes: then a part is longer than it would have to be.
    bool joined(uint32_t left, uint32_t right) const {
        const uint64_t bit = hash(left, right) >> shift_;
        return !(words_ && right == ' ') && bits_[bit >> 6] >> (bit & 63) & 1;
    }

    static uint64_t hash(uint32_t left, uint32_t right) {
        return (uint64_t(left) << 32 | right) * 0x9E3779B97F4A7C15 ^ uint64_t(right) * 0xC2B2AE3D27D4EB4F;
    }

    static uint32_t pack(const char* bytes, size_t size) {
        uint32_t packed = 0;
        std::memcpy(&packed, bytes, size);
        return packed;
    }

    bool words_;
    std::array<uint8_t, 1 << 14> cut_;  // two ASCII characters in a row: 1 if a part may begin at the second
    std::vector<uint64_t> bits_;
    int shift_;
};

}  // namespace tinylm::sentencepiece
