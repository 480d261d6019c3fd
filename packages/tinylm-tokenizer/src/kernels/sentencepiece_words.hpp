// What both SentencePiece trainers start from: the distinct words of a corpus with their counts, and the runs of a word
// that a piece may lie in. No Python here. The readable version is _sentencepiece_corpus.py.
#pragma once

#include <string>
#include <unordered_map>

#include "charsmap.hpp"

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
        }
        counts[found->second] += count;
    }

    std::vector<const Text*> texts;
    std::vector<int64_t> counts;

  private:
    std::unordered_map<Text, size_t> index_;
};

// Counts words: each line is normalised on its own and cut before every "▁" (here: ' ').
class WordCounter {
  public:
    WordCounter(std::string_view charsmap, SpaceRules rules) : normalizer_(charsmap, rules, {}) {}

    void add(std::string_view text) {
        while (!text.empty()) {
            const size_t end = std::min(text.find('\n'), text.size());
            normalizer_.normalize(text.substr(0, end), true, line_);
            text.remove_prefix(std::min(end + 1, text.size()));
            std::string_view rest = line_.view();
            while (!rest.empty()) {
                const size_t size = std::min(rest.find(' ', 1), rest.size());
                word_.assign(rest.data(), size);
                words.add(word_, 1);
                rest.remove_prefix(size);
            }
        }
    }

    Counter<std::string> words;

  private:
    Normalizer normalizer_;
    Buffer line_;
    std::string word_;
};

}  // namespace tinylm::sentencepiece
