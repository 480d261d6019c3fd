// Text → normalised text as SentencePiece makes it, in one pass: its compiled rules and what it does with spaces. No
// Python here. The readable version is normalizer.py. Source: Kudo and Richardson 2018, section 3.2.
#pragma once

#include "charsmap.hpp"
#include "sentencepiece_text.hpp"
#include "sentencepiece_trie.hpp"

namespace tinylm::sentencepiece {

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

    // A text that is being normalised. first: it starts the whole text; a later part keeps one space in front, and gets
    // none.
    struct Reading {
        std::string_view rest;
        bool first, after_space = false, begun = false;
    };

    // Adds to `out` until it has `enough` bytes or the text ends. Returns whether there is more.
    bool read(Reading& reading, size_t enough, Buffer& out) const {
        std::string_view& text = reading.rest;
        if (!reading.begun) {
            reading.after_space = rules_.remove_extra && reading.first;
            if (reading.after_space)
                while (!text.empty() && !is_itself(text.data(), text.data() + text.size())) {
                    const auto [size, replacement] = prefix(text);
                    if (replacement != " ") break;
                    text.remove_prefix(size);
                }
            if (!text.empty() && rules_.dummy_prefix && reading.first && !rules_.suffix) out.add(space());
            reading.begun = !text.empty();
        }
        out.room(std::min(text.size() + text.size() / 8, enough) + 64);
        copy(text, reading.after_space, enough, out);
        if (text.empty() && reading.begun) {
            if (rules_.remove_extra)
                while (out.size() && out.back() == space()) out.pop();
            if (rules_.dummy_prefix && rules_.suffix && (reading.first || out.size())) out.add(space());
        }
        out.seal();
        return !text.empty();
    }

    void normalize(std::string_view text, bool first, Buffer& out) const {
        out.clear();
        Reading reading{text, first};
        read(reading, std::string_view::npos, out);
    }

  private:
    char space() const { return rules_.escape ? ' ' : kRealSpace; }

    void copy(std::string_view& text, bool& space_before, size_t enough, Buffer& out) const {
        const char *const start = text.data(), *const end = start + text.size(), *at = start;
        bool after_space = space_before;
        while (at < end && out.size() < enough) {
            // 8 bytes of ordinary ASCII with single spaces, and ASCII behind them; at the end what is left of 8.
            if (words_simple_ && end - start >= 8) {
                const size_t size = std::min<size_t>(8, size_t(end - at));
                uint64_t word = load(end - at < 8 ? end - 8 : at);
                if (size < 8) word = word >> 8 * (8 - size) | kOnes * 'a' << 8 * size;
                const uint64_t odd = ((word - kOnes * ' ') | (word + kOnes) | word) & kHighs;
                const uint64_t spaces = spaces_in(word);
                const bool doubled = rules_.remove_extra && (spaces & (spaces << 8 | (after_space ? 0x80 : 0)));
                if (!odd && !doubled && (end - at <= 8 || static_cast<unsigned char>(at[8]) < 0x80)) {
                    std::memcpy(out.room(8), &word, 8);
                    out.grow(size);
                    at += size;
                    after_space = rules_.remove_extra && at[-1] == ' ';
                    continue;
                }
            }
            const auto byte = static_cast<unsigned char>(*at);
            if (is_itself(at, end)) {
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
        text.remove_prefix(size_t(at - text.data()));
        space_before = after_space;
    }

    // Whether the character at `at` is ASCII and becomes itself, which is no space.
    bool is_itself(const char* at, const char* end) const {
        const auto byte = static_cast<unsigned char>(*at);
        return byte < 0x80 && simple_[byte] && (at + 1 == end || static_cast<unsigned char>(at[1]) < 0x80 || !map_);
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
