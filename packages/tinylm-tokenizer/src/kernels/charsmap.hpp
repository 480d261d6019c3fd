// SentencePiece's compiled rules of normalisation ("charsmap"). No Python here. The readable version is
// _text/charsmap.py. Source: Kudo and Richardson 2018, section 3.2. What is done with them:
// sentencepiece_normalizer.hpp.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tinylm::sentencepiece {

// The rules: [size of the trie: 4 bytes][units of the trie: 4 bytes each][the replacements, each ended by NUL]. The
// trie is a double array in the layout of darts-clone (its documentation describes the bits). The blob comes from a
// file: every step is checked against the bounds. Errors: std::invalid_argument.
class Charsmap {
  public:
    explicit Charsmap(std::string_view blob) {
        uint32_t size = 0;
        if (blob.size() > 4) std::memcpy(&size, blob.data(), 4);
        if (size == 0 || size % 4 || size > blob.size() - 4 || blob.back() != '\0')
            throw std::invalid_argument("wanted a compiled charsmap, got bytes that are none");
        units_.resize(size / 4);
        std::memcpy(units_.data(), blob.data() + 4, size);
        replacements_.assign(blob.data() + 4 + size, blob.size() - 4 - size);
        for (uint32_t point = 0x80; point < 0x10000; point++) {
            const char bytes[3] = {char(0xE0 | point >> 12), char(0x80 | (point >> 6 & 63)), char(0x80 | (point & 63))};
            const char two[2] = {char(0xC0 | point >> 6), char(0x80 | (point & 63))};
            changes_[point] = point < 0x800 ? starts_rule({two, 2}) : starts_rule({bytes, 3});
        }
        for (int byte = 0; byte < 128; byte++) {
            simple_[byte] = true;
            for (int next = 0; next < 128; next++) {
                const char two[2] = {char(byte), char(next)};
                if (starts_rule({two, 2})) simple_[byte] = false;
            }
        }
    }

    // Whether the ASCII byte stands for itself wherever another ASCII byte follows.
    bool simple(unsigned char byte) const { return simple_[byte]; }

    // Whether a rule may start with this character (of the Basic Multilingual Plane).
    bool changes(uint32_t point) const { return changes_[point]; }

    // Length of the longest rule at the start of `text` (0: none) and what it puts there.
    std::pair<size_t, std::string_view> longest(std::string_view text) const {
        std::pair<size_t, std::string_view> found{0, {}};
        size_t node = offset(units_[0]);
        for (size_t i = 0; i < text.size(); i++) {
            const auto byte = static_cast<unsigned char>(text[i]);
            node ^= byte;
            // No rule holds NUL; free units of other makers' tries have it for a label.
            if (byte == 0 || node >= units_.size() || (units_[node] & 0x800000FF) != byte) break;
            const uint32_t unit = units_[node];
            node ^= offset(unit);
            if (node >= units_.size()) break;
            if (unit >> 8 & 1) {
                const uint32_t value = units_[node] & 0x7FFFFFFF;
                if (value < replacements_.size()) found = {i + 1, std::string_view(replacements_.data() + value)};
            }
        }
        return found;
    }

  private:
    static size_t offset(uint32_t unit) { return size_t(unit >> 10) << ((unit & 1 << 9) >> 6); }

    bool starts_rule(std::string_view character) const {  // ... or a rule is a part of it
        size_t node = offset(units_[0]);
        for (const char c : character) {
            const auto byte = static_cast<unsigned char>(c);
            node ^= byte;
            if (byte == 0 || node >= units_.size() || (units_[node] & 0x800000FF) != byte) return false;
            if (units_[node] >> 8 & 1) return true;
            node ^= offset(units_[node]);
        }
        return true;
    }

    std::vector<uint32_t> units_;
    std::string replacements_;
    std::vector<bool> changes_ = std::vector<bool>(0x10000, false);
    bool simple_[128] = {};
};

}  // namespace tinylm::sentencepiece
