// Learning a Unigram vocabulary: a seed of frequent substrings, expectation-maximisation, pruning. No Python here.
// Source: Kudo 2018 (Subword regularization), section 3.2. What is learned and in which order: unigram_training.py.
//
// The text comes as distinct words with their counts. Which pieces stand where in them is worked out once, from the sorted suffixes, and kept as lists of edges; every later step only walks along
// them. Probabilities are multiplied, not their logarithms added; long runs are rescaled by powers of two, which is exact.
// Sums go over a fixed number of shards in a fixed order: the result does not depend on the number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "sentencepiece_words.hpp"

namespace tinylm::unigram_training {

constexpr size_t kLongest = 16;  // characters in a piece
constexpr size_t kShards = 8;
constexpr double kKept = 0.75;    // of the pieces, by one pruning
constexpr double kRarest = 0.5;   // a piece that is expected to be used less often goes
constexpr double kDelta = 0.0001;  // between the scores of characters that went and have to come back
constexpr double kPenalty = 10;    // an unknown character is that much less likely than the rarest piece

inline double digamma(double x) {  // by its asymptotic series, as SentencePiece has it
    double result = 0;
    for (; x < 7; x++) result -= 1 / x;
    x -= 0.5;
    const double square = 1 / (x * x);
    return result + std::log(x) + square * (1 / 24.0 - square * (7 / 960.0 - square * (31 / 8064.0 - square * 127 / 30720)));
}

class Trainer {
  public:
    // longest: characters in a piece.
    Trainer(const std::vector<std::u32string>& words, const std::vector<int64_t>& counts, sentencepiece::Classes classes,
            size_t longest, size_t threads)
        : threads_(std::clamp<size_t>(threads, 1, kShards)), longest_(longest), classes_(std::move(classes)) {
        if (longest < 1 || longest > kLongest) throw std::invalid_argument("wanted pieces of 1 to 16 characters");
        for (size_t i = 0; i < words.size(); i++) {
            if (words[i].empty()) continue;
            words_.push_back({uint32_t(text_.size()), uint32_t(words[i].size()), double(counts[i])});
            text_ += words[i];
        }
    }

    // The first vocabulary: every character, and of all substrings that occur more than once (and not always with the
    // same character behind them) the `most` with the highest count * length. Returns the number of pieces.
    size_t seed(size_t most) {
        const std::vector<Suffix> suffixes = sorted_suffixes();
        std::vector<uint8_t> common(suffixes.size());  // characters that a suffix shares with the one before
        for (size_t i = 1; i < suffixes.size(); i++) common[i] = shared(suffixes[i - 1], suffixes[i]);
        collect(suffixes, common, most);
        make_edges(suffixes, common);
        double sum = 0;
        for (const Piece& piece : pieces_) sum += piece.weight;
        for (Piece& piece : pieces_) piece.log_p = std::log(piece.weight) - std::log(sum);
        update();
        return pieces_.size();
    }

    // One round of EM, with the prior that starves rare pieces (Liang and Klein 2007); those that are hardly used go.
    // Returns the log-likelihood of all words before the round.
    double improve() {
        double likelihood = 0, sum = 0;
        const std::vector<double> expected = expectations(likelihood);
        std::vector<bool> keep(pieces_.size());
        for (size_t id = 0; id < pieces_.size(); id++) {
            keep[id] = expected[id] >= kRarest;
            if (keep[id]) sum += expected[id];
        }
        const double total = digamma(sum);
        for (size_t id = 0; id < pieces_.size(); id++)
            if (keep[id]) pieces_[id].log_p = digamma(expected[id]) - total;
        drop(keep);
        return likelihood;
    }

    // Keep three quarters of the pieces, but not fewer than `least`: those without which the likelihood would fall most.
    // What a piece is worth: its occurrences in the best segmentation would become those of its own second-best one.
    size_t prune(size_t least) {
        const std::vector<double> used = uses();
        double total = 0;
        for (double count : used) total += count;
        std::vector<bool> keep(pieces_.size(), false);
        std::vector<std::pair<double, uint32_t>> losses;
        std::vector<uint32_t> order(pieces_.size()), others, kept;
        for (uint32_t id = 0; id < pieces_.size(); id++) order[pieces_[id].order] = id;
        for (uint32_t id : order) {
            if (used[id] == 0) continue;
            if (pieces_[id].size == 1) {
                kept.push_back(id);
                continue;
            }
            if (second_best(id, others) > pieces_[id].log_p) continue;
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
        const size_t room = std::max(least, size_t(kKept * double(pieces_.size())));
        for (auto [loss, id] : losses)
            if (kept.size() < room) kept.push_back(id);
        for (uint32_t i = 0; i < kept.size(); i++) {
            keep[kept[i]] = true;
            pieces_[kept[i]].order = i;
        }
        drop(keep);
        return pieces_.size();
    }

    using Scored = std::vector<std::pair<std::u32string, double>>;

    // Every one of the characters, and the likeliest of the other pieces that a best segmentation can use at all, `room`
    // together, the best first.
    Scored choose(std::u32string_view characters, size_t room) {
        std::unordered_map<char32_t, double> known;
        std::vector<uint32_t> order(pieces_.size()), others;
        for (uint32_t id = 0; id < pieces_.size(); id++) {
            order[id] = id;
            if (pieces_[id].size == 1) known[text(id)[0]] = pieces_[id].log_p;
        }
        Scored chosen;
        size_t missing = 0;
        for (char32_t character : characters) {
            const auto found = known.find(character);
            const double score = found != known.end() ? found->second : lowest_ + double(missing++) * kDelta;
            chosen.emplace_back(std::u32string(1, character), score);
        }
        // By the score as it is stored: how sums were rounded does not decide between equals.
        const auto better = [](double a, double b, std::u32string_view left, std::u32string_view right) {
            return float(a) != float(b) ? float(a) > float(b) : left < right;
        };
        std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
            return better(pieces_[a].log_p, pieces_[b].log_p, text(a), text(b));
        });
        for (uint32_t id : order) {
            if (chosen.size() >= room) break;
            if (pieces_[id].size > 1 && second_best(id, others) <= pieces_[id].log_p)
                chosen.emplace_back(text(id), pieces_[id].log_p);
        }
        std::sort(chosen.begin(), chosen.end(),
                  [&](auto& a, auto& b) { return better(a.second, b.second, a.first, b.first); });
        return chosen;
    }

  private:
    static constexpr uint32_t kUnknown = (1u << 27) - 1;  // the id of a character that is no piece

    struct Word {
        uint32_t start, size;
        double count;
    };
    struct Piece {
        uint32_t at;  // where it stands for the first time in sorted order
        uint32_t size;
        double weight;  // of the seed
        double log_p;
        uint32_t order;  // among equals
    };
    struct Suffix {
        uint64_t key;  // its first characters, packed
        uint32_t at;
        uint32_t size;  // up to the end of the word, and longest_
        double count;
    };
    struct Edge {  // a piece that stands somewhere in the text
        uint32_t id : 27;
        uint32_t size : 5;
    };

    std::u32string_view text(uint32_t id) const { return {text_.data() + pieces_[id].at, pieces_[id].size}; }

    // What follows from the log-probabilities.
    void update() {
        probabilities_.resize(pieces_.size());
        lowest_ = 0;
        for (size_t id = 0; id < pieces_.size(); id++) {
            probabilities_[id] = std::exp(pieces_[id].log_p);
            lowest_ = std::min(lowest_, pieces_[id].log_p);
        }
        unknown_ = std::exp(lowest_ - kPenalty);
    }

    // Whether a piece of one character begins at a place of the text; if not, an unknown one does.
    bool known(size_t at) const {
        return first_edge_[at] < first_edge_[at + 1] && edges_[first_edge_[at]].size == 1;
    }

    uint8_t shared(const Suffix& a, const Suffix& b) const {
        const uint32_t most = std::min(a.size, b.size);
        uint32_t i = 0;
        while (i < most && text_[a.at + i] == text_[b.at + i]) i++;
        return uint8_t(i);
    }

    std::vector<Suffix> sorted_suffixes() const {
        std::u32string alphabet(text_);
        std::sort(alphabet.begin(), alphabet.end());
        alphabet.erase(std::unique(alphabet.begin(), alphabet.end()), alphabet.end());
        int bits = 1;
        while (alphabet.size() >> bits) bits++;  // ranks from 1 on: 0 is "the word has ended"
        const uint32_t packed = uint32_t(std::min<size_t>(64 / size_t(bits), kLongest));
        std::vector<uint32_t> rank(alphabet.empty() ? 0 : alphabet.back() + 1);
        for (size_t i = 0; i < alphabet.size(); i++) rank[alphabet[i]] = uint32_t(i) + 1;
        std::vector<Suffix> suffixes;
        suffixes.reserve(text_.size());
        for (const Word& word : words_)
            for (uint32_t i = 0; i < word.size; i++) {
                const auto size = uint32_t(std::min<size_t>(word.size - i, longest_));
                uint64_t key = 0;
                for (uint32_t j = 0; j < packed; j++) key = key << bits | (j < size ? rank[text_[word.start + i + j]] : 0);
                suffixes.push_back({key, word.start + i, size, word.count});
            }
        std::sort(suffixes.begin(), suffixes.end(), [&](const Suffix& a, const Suffix& b) {
            if (a.key != b.key) return a.key < b.key;
            const int order = text_.compare(a.at, a.size, text_, b.at, b.size);
            return order ? order < 0 : a.at < b.at;
        });
        return suffixes;
    }

    // The candidates, by a stack over the tree of common prefixes (Abouelhoda et al. 2004): a substring that is followed
    // by different characters, or ends its word, is a node of that tree; the suffixes below it are its occurrences.
    void collect(const std::vector<Suffix>& suffixes, const std::vector<uint8_t>& common, size_t most) {
        struct Node {
            uint32_t size;
            double count;
            uint32_t at;
        };
        std::vector<Node> stack;
        std::vector<Piece> characters, candidates;
        const auto close = [&](uint32_t down_to) {
            while (!stack.empty() && stack.back().size > down_to) {
                const Node node = stack.back();
                stack.pop_back();
                if (node.size > 1 && node.count >= 2 && classes_.allow({text_.data() + node.at, node.size}))
                    candidates.push_back({node.at, node.size, node.count * node.size, 0, 0});
                if (!stack.empty() && stack.back().size >= down_to)
                    stack.back().count += node.count;
                else if (down_to > 0)
                    stack.push_back({down_to, node.count, node.at});
            }
        };
        for (size_t i = 0; i < suffixes.size(); i++) {
            const Suffix& suffix = suffixes[i];
            close(common[i]);
            if (common[i] == 0) characters.push_back({suffix.at, 1, 0, 0, 0});
            characters.back().weight += suffix.count;
            if (!stack.empty() && stack.back().size == suffix.size)
                stack.back().count += suffix.count;
            else
                stack.push_back({suffix.size, suffix.count, suffix.at});
        }
        close(0);
        const auto better = [&](const Piece& a, const Piece& b) {
            return a.weight != b.weight ? a.weight > b.weight
                                        : text_.compare(a.at, a.size, text_, b.at, b.size) < 0;
        };
        std::sort(characters.begin(), characters.end(), better);
        if (candidates.size() > most) {
            std::nth_element(candidates.begin(), candidates.begin() + ptrdiff_t(most), candidates.end(), better);
            candidates.resize(most);
        }
        std::sort(candidates.begin(), candidates.end(), better);
        pieces_ = std::move(characters);
        pieces_.insert(pieces_.end(), candidates.begin(), candidates.end());
        if (pieces_.size() >= kUnknown) throw std::length_error("wanted fewer than 134 million seed pieces");
        for (uint32_t i = 0; i < pieces_.size(); i++) pieces_[i].order = i;
        std::sort(pieces_.begin(), pieces_.end(), [&](const Piece& a, const Piece& b) {
            return text_.compare(a.at, a.size, text_, b.at, b.size) < 0;
        });
    }

    // Which pieces begin at each place: those pieces, in sorted order, that are prefixes of the suffix there. Twice over
    // the suffixes: first to count, then to fill.
    void make_edges(const std::vector<Suffix>& suffixes, const std::vector<uint8_t>& common) {
        first_edge_.assign(text_.size() + 1, 0);
        for (const bool fill : {false, true}) {
            std::vector<uint32_t> open;
            uint32_t next = 0;
            for (size_t i = 0; i < suffixes.size(); i++) {
                const Suffix& suffix = suffixes[i];
                while (!open.empty() && pieces_[open.back()].size > common[i]) open.pop_back();
                while (next < pieces_.size() && pieces_[next].size <= suffix.size &&
                       text_.compare(suffix.at, pieces_[next].size, text_, pieces_[next].at, pieces_[next].size) == 0)
                    open.push_back(next++);
                if (!fill) {
                    first_edge_[suffix.at + 1] = uint32_t(open.size());
                    continue;
                }
                Edge* edge = &edges_[first_edge_[suffix.at]];
                for (uint32_t id : open) *edge++ = {id, pieces_[id].size};
            }
            if (fill) break;
            for (size_t i = 0; i < text_.size(); i++) first_edge_[i + 1] += first_edge_[i];
            edges_.resize(first_edge_.back());
        }
    }

    // Pieces that are not kept, and their edges, go; the others get new ids in the same order.
    void drop(const std::vector<bool>& keep) {
        std::vector<uint32_t> now(pieces_.size(), kUnknown), places(pieces_.size(), 0);
        uint32_t size = 0;
        for (uint32_t id = 0; id < pieces_.size(); id++) {
            if (!keep[id]) continue;
            places[pieces_[id].order] = 1;
            now[id] = size;
            pieces_[size++] = pieces_[id];
        }
        pieces_.resize(size);
        for (size_t i = 1; i < places.size(); i++) places[i] += places[i - 1];
        for (Piece& piece : pieces_) piece.order = places[piece.order] - 1;
        uint32_t to = 0;
        for (size_t at = 0, from = 0; at < text_.size(); at++) {
            const uint32_t end = first_edge_[at + 1];
            first_edge_[at] = to;
            for (; from < end; from++)
                if (const uint32_t id = now[edges_[from].id]; id != kUnknown) edges_[to++] = {id, edges_[from].size};
        }
        first_edge_.back() = to;
        edges_.resize(to);
        update();
    }

    // Runs work(shard, first word, last word) for all shards, on as many threads as there are.
    void in_shards(const std::function<void(size_t, size_t, size_t)>& work) const {
        std::atomic<size_t> next = 0;
        const auto loop = [&] {
            for (size_t shard; (shard = next++) < kShards;)
                work(shard, words_.size() * shard / kShards, words_.size() * (shard + 1) / kShards);
        };
        std::vector<std::thread> others;
        for (size_t i = 1; i < threads_; i++) others.emplace_back(loop);
        loop();
        for (std::thread& thread : others) thread.join();
    }

    static std::vector<double> sum(const std::vector<std::vector<double>>& shards) {
        std::vector<double> total = shards[0];
        for (size_t shard = 1; shard < shards.size(); shard++)
            for (size_t i = 0; i < total.size(); i++) total[i] += shards[shard][i];
        return total;
    }

    // E-step: how often each piece is expected over all segmentations of all words, by forward and backward sums.
    std::vector<double> expectations(double& likelihood) const {
        std::vector<std::vector<double>> expected(kShards);
        std::vector<double> likelihoods(kShards, 0);
        in_shards([&](size_t shard, size_t first, size_t last) {
            expected[shard].assign(pieces_.size(), 0);
            Sums sums;
            for (size_t i = first; i < last; i++) likelihoods[shard] += expect(words_[i], expected[shard], sums);
        });
        for (double part : likelihoods) likelihood += part;
        return sum(expected);
    }

    struct Sums {
        std::vector<double> forward, backward;
        std::vector<int> forward_scale, backward_scale;  // of each block of kLongest places: stored = true * 2^scale
    };

    // Returns count * log(sum over all segmentations of the word) and adds the word's expectations.
    double expect(const Word& word, std::vector<double>& expected, Sums& sums) const {
        auto& [forward, backward, forward_scale, backward_scale] = sums;
        const size_t size = word.size, blocks = size / kLongest + 1;
        const uint32_t* first = &first_edge_[word.start];
        forward.assign(size + kLongest + 1, 0);
        backward.assign(size + kLongest + 1, 0);
        forward_scale.assign(blocks + 1, 0);
        backward_scale.assign(blocks + 1, 0);
        forward[0] = 1;
        for (size_t at = 0; at < size; at++) {
            if (at % kLongest == 0 && at) rescale_forward(sums, at);
            if (!known(word.start + at)) forward[at + 1] += forward[at] * unknown_;
            for (uint32_t i = first[at]; i < first[at + 1]; i++)
                forward[at + edges_[i].size] += forward[at] * probabilities_[edges_[i].id];
        }
        if (size % kLongest == 0) forward_scale[size / kLongest] = forward_scale[size / kLongest - 1];
        backward[size] = 1;
        for (size_t at = size; at-- > 0;) {
            const size_t block = at / kLongest, border = (block + 1) * kLongest;
            if (at + 1 == border) {  // the block behind is complete
                double most = 0;
                for (size_t i = border; i <= std::min(size, border + kLongest - 1); i++) most = std::max(most, backward[i]);
                backward_scale[block] = backward_scale[block + 1] - std::ilogb(most);
            }
            const double behind = power(backward_scale[block] - backward_scale[block + 1]);
            double sum = known(word.start + at) ? 0 : unknown_ * backward[at + 1] * (at + 1 < border ? 1 : behind);
            for (uint32_t i = first[at]; i < first[at + 1]; i++) {
                const size_t end = at + edges_[i].size;
                sum += probabilities_[edges_[i].id] * backward[end] * (end < border ? 1 : behind);
            }
            backward[at] = sum;
        }
        const int scale = forward_scale[size / kLongest];
        for (size_t at = 0; at < size; at++) {
            const size_t block = at / kLongest, border = (block + 1) * kLongest;
            const double here = forward[at] * word.count / forward[size];
            const int shift = scale - forward_scale[block];
            const double inside = here * power(shift - backward_scale[block]);
            const double behind = here * power(shift - backward_scale[block + 1]);
            for (uint32_t i = first[at]; i < first[at + 1]; i++) {
                const size_t end = at + edges_[i].size;
                expected[edges_[i].id] += probabilities_[edges_[i].id] * backward[end] * (end < border ? inside : behind);
            }
        }
        return word.count * (std::log(forward[size]) - scale * std::log(2.0));
    }

    static double power(int exponent) { return exponent ? std::ldexp(1.0, exponent) : 1; }

    // Brings the sums that later places start from near 1, before anything is added to those of a new block.
    static void rescale_forward(Sums& sums, size_t at) {
        double most = 0;
        for (size_t i = at; i < at + kLongest; i++) most = std::max(most, sums.forward[i]);
        const int shift = -std::ilogb(most);
        for (size_t i = at; i < at + kLongest; i++) sums.forward[i] = std::ldexp(sums.forward[i], shift);
        sums.forward_scale[at / kLongest] = sums.forward_scale[at / kLongest - 1] + shift;
    }

    struct Best {
        double score;
        uint32_t start, id;
    };

    // The best segmentation of `size` characters from `start` on (Viterbi); the piece `without` is not allowed.
    double best(uint32_t start, uint32_t size, uint32_t without, std::vector<Best>& best, std::vector<uint32_t>& ids) const {
        best.assign(size + 1, {-std::numeric_limits<double>::infinity(), 0, 0});
        best[0].score = 0;
        const auto offer = [&](uint32_t at, uint32_t end, double score, uint32_t id) {
            if (best[at].score + score > best[end].score) best[end] = {best[at].score + score, at, id};
        };
        for (uint32_t at = 0; at < size; at++) {
            if (!known(start + at)) offer(at, at + 1, lowest_ - kPenalty, kUnknown);
            for (uint32_t i = first_edge_[start + at]; i < first_edge_[start + at + 1]; i++) {
                const Edge edge = edges_[i];
                if (at + edge.size > size) break;
                if (edge.id != without) offer(at, at + edge.size, pieces_[edge.id].log_p, edge.id);
            }
        }
        ids.clear();
        for (uint32_t end = size; end > 0; end = best[end].start) ids.push_back(best[end].id);
        std::reverse(ids.begin(), ids.end());
        return best[size].score;
    }

    double second_best(uint32_t id, std::vector<uint32_t>& ids) {
        return best(pieces_[id].at, pieces_[id].size, id, scratch_, ids);
    }

    // How often each piece is used in the best segmentations of all words.
    std::vector<double> uses() const {
        std::vector<std::vector<double>> found(kShards);
        in_shards([&](size_t shard, size_t first, size_t last) {
            found[shard].assign(pieces_.size(), 0);
            std::vector<Best> scratch;
            std::vector<uint32_t> ids;
            for (size_t i = first; i < last; i++) {
                best(words_[i].start, words_[i].size, kUnknown, scratch, ids);
                for (uint32_t id : ids)
                    if (id != kUnknown) found[shard][id] += words_[i].count;
            }
        });
        return sum(found);
    }

    size_t threads_, longest_;
    sentencepiece::Classes classes_;
    std::u32string text_;  // all words, one after the other
    std::vector<Word> words_;
    std::vector<Piece> pieces_;
    std::vector<double> probabilities_;  // of each piece
    double lowest_ = 0, unknown_ = 0;    // the lowest log-probability; the probability of an unknown character
    std::vector<uint32_t> first_edge_;   // of each place in the text, and the end
    std::vector<Edge> edges_;
    std::vector<Best> scratch_;
};

}  // namespace tinylm::unigram_training
