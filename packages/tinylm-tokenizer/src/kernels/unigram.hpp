// The best segmentation under a Unigram model (Viterbi). No Python here. The readable version is unigram.py.
// Source: Kudo 2018 (Subword regularization), section 3.2.
//
// SentencePiece adds up scores from the start of the whole text, in float32: far into a text the sums are rounded,
// which decides near-ties. To give the same ids, `exact` does the same sums. `free` solves a word on its own and says
// up to which size of the sum no rounding can change its segmentation, so that it may be kept in a cache.
#pragma once

#include <cmath>
#include <limits>

#include "sentencepiece_bpe.hpp"

namespace tinylm::sentencepiece {

class Unigram {
  public:
    // texts: pieces that may be found in text, in the internal writing (others: empty); scores: of each id, already
    // with what user-defined symbols get, and `unknown` for the unknown one. in_double: sums in float64 that are never
    // reset (Hugging Face's tokenizers).
    Unigram(const std::vector<std::string>& texts, std::vector<double> scores, double unknown, bool in_double)
        : scores_(std::move(scores)), unknown_(unknown), in_double_(in_double), highest_(std::abs(unknown)) {
        Trie::Keys keys;
        for (uint32_t id = 0; id < texts.size(); id++) {
            if (texts[id].empty()) continue;
            keys.emplace_back(texts[id], id);
            highest_ = std::max(highest_, std::abs(scores_[id]));
        }
        trie_.build(std::move(keys));
    }

    struct Scratch {
        struct Best {
            double score, second;
            uint32_t start, id;
        };
        std::vector<Best> best;
    };

    double score(uint32_t id) const { return scores_[id]; }
    double unknown() const { return unknown_; }

    // As long as the sum is smaller in size, one more token cannot take it to where SentencePiece sets it back.
    double safe() const { return in_double_ ? std::numeric_limits<double>::infinity() : kReset - highest_; }

    // The exact sum after more pieces.
    double add(double sum, const uint32_t* ids, size_t count) const {
        if (in_double_) {
            for (size_t i = 0; i < count; i++) sum += scores_[ids[i]];
            return sum;
        }
        float rounded = float(sum);
        for (size_t i = 0; i < count; i++) rounded += float(scores_[ids[i]]);
        return double(rounded);
    }

    // ... and after a character that no piece covers.
    double add_unknown(double sum) const {
        if (in_double_) return sum + unknown_;
        return double(float(unknown_) + (std::abs(float(sum)) > float(kReset) ? 0.0f : float(sum)));
    }

    // Segments `text`, which begins where the sum is `sum`; returns the sum at its end.
    double exact(std::string_view text, double sum, Scratch& scratch, std::vector<Token>& tokens) const {
        return in_double_ ? solve<double, false>(text, sum, scratch, tokens)
                          : solve<float, false>(text, sum, scratch, tokens);
    }

    // Segments `text` alone, without rounding; returns the size of the sum up to which `exact` does the same (< 0:
    // never).
    double free(std::string_view text, Scratch& scratch, std::vector<Token>& tokens) const {
        solve<double, true>(text, 0, scratch, tokens);
        double gap = std::numeric_limits<double>::infinity();
        size_t at = text.size();
        for (const auto& best = scratch.best; at > 0; at = best[at].start)
            gap = std::min(gap, best[at].score - best[at].second);
        // A path has at most size + 1 additions, each off by half a unit in the last place of the sum; two paths may
        // err in opposite directions. `gap` has to be larger: 2 * (size + 1) / 2 units.
        const double unit = gap * 0.999 / double(text.size() + 1);
        if (!(unit > 0)) return -1;
        const double within = highest_ * double(text.size());  // how far the sum moves inside the word
        if (std::isinf(unit)) return in_double_ ? unit : kReset - within;
        const double limit = std::ldexp(1.0, std::ilogb(unit) + (in_double_ ? 53 : 24)) - within;
        return in_double_ ? limit : std::min(limit, kReset - within);
    }

  private:
    static constexpr double kReset = 100000;  // where SentencePiece sets a sum back to 0

    template <class Real, bool kSeconds>
    double solve(std::string_view text, double sum, Scratch& scratch, std::vector<Token>& tokens) const {
        auto& best = scratch.best;
        constexpr double kWorst = -std::numeric_limits<double>::infinity();
        if (best.size() <= text.size()) best.resize(text.size() + 1);
        std::fill_n(best.begin(), text.size() + 1, Scratch::Best{0, kWorst, kNone, kNone});
        best[0].score = sum;
        size_t frontier = 0;
        for (size_t start = 0; start < text.size();) {
            auto here = Real(best[start].score);
            if (std::is_same_v<Real, float> && std::abs(here) > Real(kReset)) {
                for (size_t i = start; i <= frontier; i++)
                    if (i == start || best[i].start != kNone) best[i].score = Real(best[i].score) - here;
                here = 0;
            }
            auto offer = [&](size_t end, Real score, uint32_t id) {
                auto& node = best[end];
                frontier = std::max(frontier, end);
                const Real candidate = score + here;
                if (node.start == kNone || candidate > Real(node.score)) {
                    if (kSeconds && node.start != kNone) node.second = node.score;
                    node.score = candidate;
                    node.start = uint32_t(start);
                    node.id = id;
                } else if (kSeconds && candidate > node.second) {
                    node.second = candidate;
                }
            };
            const size_t size = std::min(text.size() - start, character_size(static_cast<unsigned char>(text[start])));
            bool single = false;
            uint32_t node = Trie::root();
            for (size_t at = start; at < text.size() && trie_.step(node, static_cast<unsigned char>(text[at])); at++) {
                const uint32_t id = trie_.id(node);
                if (id == kNone) continue;
                offer(at + 1, Real(scores_[id]), id);
                single |= at + 1 - start == size;
            }
            if (!single) offer(start + size, Real(unknown_), kNone);
            start += size;
        }
        tokens.clear();
        for (size_t at = text.size(); at > 0; at = best[at].start)
            tokens.push_back({best[at].id, uint32_t(at - best[at].start)});
        std::reverse(tokens.begin(), tokens.end());
        return best[text.size()].score;
    }

    std::vector<double> scores_;
    double unknown_;
    bool in_double_;
    double highest_;  // of all scores, in size
    Trie trie_;
};

}  // namespace tinylm::sentencepiece
