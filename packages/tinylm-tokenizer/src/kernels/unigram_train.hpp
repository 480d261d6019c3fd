// Learning a Unigram vocabulary: a seed of frequent substrings, expectation-maximisation, pruning. No Python here.
// Source: Kudo 2018 (Subword regularization), section 3.2. What is learned and in which order: unigram_training.py.
#pragma once

#include <unordered_map>

#include "unigram_expect.hpp"
#include "unigram_seed.hpp"

namespace tinylm::unigram_training {

constexpr double kKept = 0.75;     // of the pieces, by one pruning
constexpr double kRarest = 0.5;    // a piece that is expected to be used less often goes
constexpr double kDelta = 0.0001;  // between the scores of characters that went and have to come back

inline double digamma(double x) {  // by its asymptotic series, as SentencePiece has it
    double result = 0;
    for (; x < 7; x++) result -= 1 / x;
    x -= 0.5;
    const double square = 1 / (x * x);
    const double series = square * (1 / 24.0 - square * (7 / 960.0 - square * (31 / 8064.0 - square * 127 / 30720)));
    return result + std::log(x) + series;
}

class Trainer {
  public:
    // The distinct words of the corpus with their counts; longest: characters in a piece.
    Trainer(const std::vector<std::u32string>& words, const std::vector<int64_t>& counts,
            sentencepiece::Classes classes, size_t longest, size_t threads)
        : longest_(longest), classes_(std::move(classes)) {
        if (longest < 1 || longest > kLongest) throw std::invalid_argument("wanted pieces of 1 to 16 characters");
        lattice_.threads = std::clamp<size_t>(threads, 1, kShards);
        uint64_t characters = 0;
        for (const std::u32string& word : words) characters += word.size();
        if (characters >= UINT32_MAX) throw std::length_error("the distinct words of the corpus have 4 G characters");
        for (size_t i = 0; i < words.size(); i++) {
            if (words[i].empty()) continue;
            lattice_.words.push_back({uint32_t(lattice_.text.size()), uint32_t(words[i].size()), double(counts[i])});
            lattice_.text += words[i];
        }
    }

    // The first vocabulary; see Seed::make. Returns the number of pieces.
    size_t seed(size_t most) {
        Seed(lattice_, classes_, longest_).make(most);
        return lattice_.pieces.size();
    }

    // One round of EM, with the prior that starves rare pieces (Liang and Klein 2007); those that are hardly used go.
    // Returns the log-likelihood of all words before the round.
    double improve() {
        double likelihood = 0, sum = 0;
        const std::vector<double> expected = Expectation(lattice_).expectations(likelihood);
        std::vector<bool> keep(lattice_.pieces.size());
        for (size_t id = 0; id < lattice_.pieces.size(); id++) {
            keep[id] = expected[id] >= kRarest;
            if (keep[id]) sum += expected[id];
        }
        const double total = digamma(sum);
        for (size_t id = 0; id < lattice_.pieces.size(); id++)
            if (keep[id]) lattice_.pieces[id].log_p = digamma(expected[id]) - total;
        lattice_.drop(keep);
        return likelihood;
    }

    // Keep three quarters of the pieces, but not fewer than `least`: those without which the likelihood would fall
    // most. What a piece is worth: its occurrences in the best segmentation would become those of its own second-best
    // one.
    size_t prune(size_t least) {
        const std::vector<double> used = lattice_.uses();
        double total = 0;
        for (double count : used) total += count;
        std::vector<bool> keep(lattice_.pieces.size(), false);
        std::vector<std::pair<double, uint32_t>> losses;
        std::vector<uint32_t> order(lattice_.pieces.size()), others, kept;
        for (uint32_t id = 0; id < lattice_.pieces.size(); id++) order[lattice_.pieces[id].order] = id;
        for (uint32_t id : order) {
            if (used[id] == 0) continue;
            if (lattice_.pieces[id].size == 1) {
                kept.push_back(id);
                continue;
            }
            if (second_best(id, others) > lattice_.pieces[id].log_p) continue;
            if (std::find(others.begin(), others.end(), kUnknown) != others.end()) {
                kept.push_back(id);
                continue;
            }
            const double total_then = std::log(total + used[id] * double(others.size() - 1));
            double then = 0;
            for (uint32_t other : others) then += std::log(used[other] + used[id]) - total_then;
            losses.emplace_back(-(used[id] / total * (std::log(used[id]) - std::log(total) - then)), id);
        }
        std::stable_sort(losses.begin(), losses.end(), [](auto& a, auto& b) { return a.first < b.first; });
        const size_t room = std::max(least, size_t(kKept * double(lattice_.pieces.size())));
        for (auto [loss, id] : losses)
            if (kept.size() < room) kept.push_back(id);
        for (uint32_t i = 0; i < kept.size(); i++) {
            keep[kept[i]] = true;
            lattice_.pieces[kept[i]].order = i;
        }
        lattice_.drop(keep);
        return lattice_.pieces.size();
    }

    using Scored = std::vector<std::pair<std::u32string, double>>;

    // Every one of the characters, and the likeliest of the other pieces that a best segmentation can use at all,
    // `room` together, the best first.
    Scored choose(std::u32string_view characters, size_t room) {
        std::unordered_map<char32_t, double> known;
        std::vector<uint32_t> order(lattice_.pieces.size()), others;
        for (uint32_t id = 0; id < lattice_.pieces.size(); id++) {
            order[id] = id;
            if (lattice_.pieces[id].size == 1) known[lattice_.piece(id)[0]] = lattice_.pieces[id].log_p;
        }
        Scored chosen;
        size_t missing = 0;
        for (char32_t character : characters) {
            const auto found = known.find(character);
            const double score = found != known.end() ? found->second : lattice_.lowest + double(missing++) * kDelta;
            chosen.emplace_back(std::u32string(1, character), score);
        }
        // By the score as it is stored: how sums were rounded does not decide between equals.
        const auto better = [](double a, double b, std::u32string_view left, std::u32string_view right) {
            return float(a) != float(b) ? float(a) > float(b) : left < right;
        };
        std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
            return better(lattice_.pieces[a].log_p, lattice_.pieces[b].log_p, lattice_.piece(a), lattice_.piece(b));
        });
        for (uint32_t id : order) {
            if (chosen.size() >= room) break;
            if (lattice_.pieces[id].size > 1 && second_best(id, others) <= lattice_.pieces[id].log_p)
                chosen.emplace_back(lattice_.piece(id), lattice_.pieces[id].log_p);
        }
        std::sort(chosen.begin(), chosen.end(),
                  [&](auto& a, auto& b) { return better(a.second, b.second, a.first, b.first); });
        return chosen;
    }

  private:
    double second_best(uint32_t id, std::vector<uint32_t>& ids) {
        return lattice_.best(lattice_.pieces[id].at, lattice_.pieces[id].size, id, scratch_, ids);
    }

    size_t longest_;
    sentencepiece::Classes classes_;
    Lattice lattice_;
    std::vector<Lattice::Best> scratch_;
};

}  // namespace tinylm::unigram_training
