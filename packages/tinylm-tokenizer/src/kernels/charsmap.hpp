// Text → normalised text as SentencePiece makes it, in one pass: its compiled rules ("charsmap") and what it does with
// spaces. No Python here. The readable version is normalizer.py. Source: Kudo and Richardson 2018, section 3.2.
//
// Inside the kernels "▁" (3 bytes) is written as the byte ' ', and a real space, if one is left, as 0xFF, which occurs in
// no UTF-8: so that ordinary text is copied as it stands.
#pragma once

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string_view>

#include "sentencepiece_trie.hpp"

namespace tinylm::sentencepiece {

constexpr char kRealSpace = '\xFF';

inline size_t character_size(unsigned char lead) {
    return lead < 0x80 || lead == 0xFF ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

inline uint64_t load(const char* from) {
    uint64_t word;
    std::memcpy(&word, from, 8);
    return word;
}

constexpr uint64_t kOnes = 0x0101010101010101, kHighs = 0x8080808080808080;

// The high bit of each byte that is a space; exact up to the first one.
inline uint64_t spaces_in(uint64_t word) {
    word ^= kOnes * ' ';
    return (word - kOnes) & ~word & kHighs;
}

// "▁" → ' ' and ' ' → 0xFF: how texts are written in here.
inline std::string to_internal(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (size_t i = 0; i < text.size(); i++) {
        if (text.compare(i, 3, "\xE2\x96\x81") == 0) {
            out += ' ';
            i += 2;
        } else {
            out += text[i] == ' ' ? kRealSpace : text[i];
        }
    }
    return out;
}

// The rules: [size of the trie: 4 bytes][units of the trie: 4 bytes each][the replacements, each ended by NUL]. The trie
// is a double array in the layout of darts-clone (its documentation describes the bits). The blob comes from a file:
// every step is checked against the bounds. Errors: std::invalid_argument.
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
            if (byte == 0 || node >= units_.size() || (units_[node] & 0x800000FF) != byte) break;  // 0: a free unit's label
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

// Bytes with room to write, and 32 spaces behind the end, so that words can be read 8 bytes at a time.
class Buffer {
  public:
    void clear() { size_ = 0; }
    size_t size() const { return size_; }
    std::string_view view() const { return {data_.get(), size_}; }
    char back() const { return data_[size_ - 1]; }
    void pop() { size_--; }
    void seal() {
        char* end = room(32);
        std::memset(end, ' ', 32);
    }
    char* room(size_t wanted) {
        if (size_ + wanted > capacity_) {
            capacity_ = std::max(2 * capacity_, size_ + wanted + 64);
            std::unique_ptr<char[]> larger(new char[capacity_]);
            if (size_) std::memcpy(larger.get(), data_.get(), size_);
            data_ = std::move(larger);
        }
        return data_.get() + size_;
    }
    void grow(size_t written) { size_ += written; }
    void add(char byte) {
        *room(1) = byte;
        size_++;
    }
    void add(const char* from, size_t size) {
        std::memcpy(room(size), from, size);
        size_ += size;
    }

  private:
    std::unique_ptr<char[]> data_;
    size_t size_ = 0, capacity_ = 0;
};

struct SpaceRules {
    bool dummy_prefix, remove_extra, suffix, escape;
};

class Normalizer {
  public:
    Normalizer(std::string_view charsmap, SpaceRules rules, Trie::Keys symbols) : rules_(rules) {
        if (!charsmap.empty()) map_ = std::make_unique<Charsmap>(charsmap);
        bool first_byte[256] = {};
        for (auto& [text, id] : symbols) first_byte[static_cast<unsigned char>(text[0])] = true;
        has_symbols_ = !symbols.empty();
        symbols_.build(std::move(symbols));
        words_simple_ = rules.escape;
        for (unsigned char byte = 0; byte < 128; byte++) {
            simple_[byte] = !first_byte[byte] && (!map_ || map_->simple(byte)) && byte != ' ';
            if (byte > ' ' && byte < 127) words_simple_ &= simple_[byte];
        }
        words_simple_ &= !first_byte[' '] && (!map_ || map_->simple(' '));
    }

    // first: the text starts the whole text; a later part keeps one space in front, and gets none.
    void normalize(std::string_view text, bool first, Buffer& out) const {
        out.clear();
        if (rules_.remove_extra && first) {
            while (!text.empty()) {
                const auto [size, replacement] = prefix(text);
                if (replacement != " ") break;
                text.remove_prefix(size);
            }
        }
        if (!text.empty()) {
            out.room(text.size() + text.size() / 8 + 64);
            if (rules_.dummy_prefix && first && !rules_.suffix) out.add(space());
            copy(text, rules_.remove_extra && first, out);
            if (rules_.remove_extra)
                while (out.size() && out.back() == space()) out.pop();
            if (rules_.dummy_prefix && rules_.suffix && (first || out.size())) out.add(space());
        }
        out.seal();
    }

  private:
    char space() const { return rules_.escape ? ' ' : kRealSpace; }

    void copy(std::string_view text, bool after_space, Buffer& out) const {
        const char* at = text.data();
        const char* const end = at + text.size();
        while (at < end) {
            if (words_simple_ && end - at > 8) {  // 8 bytes of ordinary ASCII with single spaces, and ASCII behind them
                const uint64_t word = load(at);
                const uint64_t odd = ((word - kOnes * ' ') | (word + kOnes) | word) & kHighs;
                const uint64_t spaces = spaces_in(word);
                const bool doubled = rules_.remove_extra && (spaces & (spaces << 8 | (after_space ? 0x80 : 0)));
                if (!odd && !doubled && static_cast<unsigned char>(at[8]) < 0x80) {
                    std::memcpy(out.room(8), at, 8);
                    out.grow(8);
                    after_space = rules_.remove_extra && at[7] == ' ';
                    at += 8;
                    continue;
                }
            }
            const auto byte = static_cast<unsigned char>(*at);
            if (byte < 0x80 && simple_[byte] && (at + 1 == end || static_cast<unsigned char>(at[1]) < 0x80 || !map_)) {
                out.add(*at++);
                after_space = false;
                continue;
            }
            if (byte >= 0xC0 && byte < 0xF0 && !has_symbols_) {
                const bool three = byte >= 0xE0;
                const uint32_t point = three ? (byte & 15u) << 12 | (at[1] & 63u) << 6 | (at[2] & 63u)
                                             : (byte & 31u) << 6 | (at[1] & 63u);
                if (point != 0x2581 && (!map_ || !map_->changes(point))) {
                    out.add(at, 2 + three);
                    at += 2 + three;
                    after_space = false;
                    continue;
                }
            }
            auto [size, replacement] = prefix({at, size_t(end - at)});
            at += size;
            while (after_space && !replacement.empty() && replacement[0] == ' ') replacement.remove_prefix(1);
            if (replacement.empty()) continue;
            after_space = rules_.remove_extra && replacement.back() == ' ';
            for (size_t i = 0; i < replacement.size(); i++) {
                if (replacement[i] == ' ') {
                    out.add(space());
                } else if (replacement.compare(i, 3, "\xE2\x96\x81") == 0) {
                    out.add(' ');
                    i += 2;
                } else {
                    out.add(replacement[i]);
                }
            }
        }
    }

    // What stands first in `text` (a user-defined symbol, a rule, else a character): its size and what becomes of it.
    std::pair<size_t, std::string_view> prefix(std::string_view text) const {
        if (has_symbols_) {
            size_t longest = 0;
            uint32_t node = Trie::root();
            for (size_t i = 0; i < text.size() && symbols_.step(node, static_cast<unsigned char>(text[i])); i++)
                if (symbols_.id(node) != kNone) longest = i + 1;
            if (longest) return {longest, text.substr(0, longest)};
        }
        if (map_)
            if (auto found = map_->longest(text); found.first) return found;
        const size_t size = std::min(text.size(), character_size(static_cast<unsigned char>(text[0])));
        return {size, text.substr(0, size)};
    }

    SpaceRules rules_;
    std::unique_ptr<Charsmap> map_;
    Trie symbols_;
    bool has_symbols_ = false;
    bool simple_[128] = {};
    bool words_simple_ = false;  // true of all printable ASCII
};

}  // namespace tinylm::sentencepiece
