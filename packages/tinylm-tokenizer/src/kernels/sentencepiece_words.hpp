// What both SentencePiece trainers start from: the distinct words of a corpus with their counts, and the runs of a word
// that a piece may lie in. No Python here. The readable version is _trainers/sentencepiece_corpus.py.
#pragma once

#include <string>
#include <unordered_map>
#include <unordered_set>

#include "sentencepiece_normalizer.hpp"

namespace tinylm::sentencepiece {

// Distinct strings with their counts, in the order in which they were first seen.
template <class Text>
class Counter {
  public:
    void add(const Text& text, int64_t count) {
        const auto [found, is_new] = index_.try_emplace(text, counts.size());
        if (is_new) {
            texts.push_back(&found->first);  // an unordered_map never moves what it holds
            counts.push_back(0);
            held += text.size();
        }
        counts[found->second] += count;
    }

    std::vector<const Text*> texts;
    std::vector<int64_t> counts;
    size_t held = 0;  // units of all texts

  private:
    std::unordered_map<Text, size_t> index_;
};

// Which characters may stand in one piece: those of the same class (script), and any character of kAny with all of
// them.
class Classes {
  public:
    static constexpr uint16_t kOut = 0;  // in no piece
    static constexpr uint16_t kAny = 1;

    void set(char32_t point, uint16_t type) { types_[point] = type; }

    uint16_t of(char32_t point) const {
        const auto found = types_.find(point);
        return found == types_.end() ? kOut : found->second;
    }

    static bool join(uint16_t left, uint16_t right) { return left == right || left == kAny || right == kAny; }

    // Whether a piece may be this text.
    bool allow(std::u32string_view text) const {
        uint16_t type = kAny;
        for (char32_t point : text) {
            const uint16_t next = of(point);
            if (!join(type, next)) return false;
            type = std::max(type, next);
        }
        return true;
    }

    // Calls run(part) for the parts of `word` that pieces may lie in: cut around characters of kOut and between two
    // characters of different classes.
    template <class Call>
    void cut(std::u32string_view word, Call&& run) const {
        size_t from = 0;
        for (size_t i = 0; i <= word.size(); i++) {
            const bool out = i == word.size() || of(word[i]) == kOut;
            if (!out && (i == from || join(of(word[i - 1]), of(word[i])))) continue;
            if (i > from) run(word.substr(from, i - from));
            from = out ? i + 1 : i;
        }
    }

  private:
    std::unordered_map<char32_t, uint16_t> types_;
};

// Counts words: each line is normalised on its own, and cut before every "▁" (here: ' ') and around the texts that
// stand apart (special and user-defined pieces).
class WordCounter {
  public:
    WordCounter(std::string_view charsmap, SpaceRules rules, Trie::Keys apart) : normalizer_(charsmap, rules, {}) {
        for (auto& [text, id] : apart) may_start_[static_cast<unsigned char>(text[0])] = true;
        apart_.build(std::move(apart));
    }

    void add(std::string_view text) {
        while (!text.empty()) {
            const size_t end = std::min(text.find('\n'), text.size());
            std::string_view line = text.substr(0, end);
            text.remove_prefix(std::min(end + 1, text.size()));
            while (!line.empty() && line.back() == '\r') line.remove_suffix(1);
            if (line.empty()) continue;
            normalizer_.normalize(line, true, line_);
            add_line(line_.view());
        }
    }

    size_t distinct() const { return words_.counts.size(); }
    size_t bytes() const { return words_.held; }

    // Every character of the words (UTF-8, "▁" as ' ') with its count; "": how many texts stand apart.
    Counter<std::string> characters() const {
        Counter<std::string> out;
        out.add("", found_apart_);
        for_each([&](std::string_view word, int64_t count) {
            for (size_t i = 0, size; i < word.size(); i += size) {
                size = character_size(static_cast<unsigned char>(word[i]));
                out.add(std::string(word.substr(i, size)), count);
            }
        });
        return out;
    }

    // The words cut at all characters but those of `kept` (written alike), the most frequent first, of equals the one
    // that comes first in Unicode; with "▁" as it is.
    std::vector<std::pair<std::string, int64_t>> covered(const std::vector<std::string>& kept) const {
        const std::unordered_set<std::string_view> known(kept.begin(), kept.end());
        Counter<std::string> parts;
        std::string part;
        const auto close = [&](int64_t count) {
            if (!part.empty()) parts.add(part, count);
            part.clear();
        };
        for_each([&](std::string_view word, int64_t count) {
            for (size_t i = 0, size; i < word.size(); i += size) {
                size = character_size(static_cast<unsigned char>(word[i]));
                const std::string_view character = word.substr(i, size);
                if (!known.contains(character))
                    close(count);
                else
                    part += to_real(character);
            }
            close(count);
        });
        std::vector<std::pair<std::string, int64_t>> out;
        for (size_t i = 0; i < parts.counts.size(); i++) out.emplace_back(*parts.texts[i], parts.counts[i]);
        std::sort(out.begin(), out.end(),
                  [](auto& a, auto& b) { return a.second != b.second ? a.second > b.second : a.first < b.first; });
        return out;
    }

    static std::string_view to_real(std::string_view character) {
        return character == " " ? "\xE2\x96\x81" : character[0] == kRealSpace ? " " : character;
    }

  private:
    template <class Call>
    void for_each(Call&& call) const {
        for (size_t i = 0; i < words_.counts.size(); i++) call(*words_.texts[i], words_.counts[i]);
    }

    void add_line(std::string_view line) {
        size_t from = 0;
        const auto word = [&](size_t to) {
            if (to > from) words_.add(word_.assign(line.data() + from, to - from), 1);
            from = to;
        };
        for (size_t at = 0; at < line.size(); at++) {
            const auto byte = static_cast<unsigned char>(line[at]);
            if (may_start_[byte]) {
                if (const size_t size = standing_apart(line.substr(at))) {
                    word(at);
                    found_apart_++;
                    from = at + size;
                    at = from - 1;
                    continue;
                }
            }
            if (byte == ' ') word(at);
        }
        word(line.size());
    }

    size_t standing_apart(std::string_view text) const {  // the longest one at the start of `text`
        size_t longest = 0;
        uint32_t node = Trie::root();
        for (size_t i = 0; i < text.size() && apart_.step(node, static_cast<unsigned char>(text[i])); i++)
            if (apart_.id(node) != kNone) longest = i + 1;
        return longest;
    }

    Normalizer normalizer_;
    Trie apart_;
    bool may_start_[256] = {};
    int64_t found_apart_ = 0;
    Counter<std::string> words_;
    Buffer line_;
    std::string word_;
};

}  // namespace tinylm::sentencepiece
