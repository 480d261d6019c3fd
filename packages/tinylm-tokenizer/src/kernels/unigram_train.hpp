// Learning a Unigram vocabulary: a seed of frequent substrings, expectation-maximisation, pruning. No Python here.
// Source: Kudo 2018 (Subword regularization), section 3.2. What is learned and in which order: unigram_training.py.
//
// The text comes as distinct runs (parts of words that a piece may lie in) with their counts. Which pieces stand where in
// the runs is worked out once, from the sorted suffixes, and kept as lists of edges; every later step only walks along
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

namespace tinylm::unigram_training {

constexpr size_t kLongest = 16;  // characters in a piece
constexpr size_t kShards = 8;
constexpr double kRarest = 0.5;  // a piece that is expected less often goes; a single character then counts as that often

inline double digamma(double x) {  // by its asymptotic series, as SentencePiece has it
    double result = 0;
    for (; x < 7; x++) result -= 1 / x;
    x -= 0.5;
    const double square = 1 / (x * x), fourth = square * square;
    return result + std::log(x) + square / 24 - fourth * 7 / 960 + fourth * square * 31 / 8064 -
           fourth * fourth * 127 / 30720;
}

class Trainer {
  public:
    Trainer(const std::vector<std::u32string>& runs, const std::vector<int64_t>& counts, size_t threads)
        : threads_(std::clamp<size_t>(threads, 1, kShards)) {
        for (size_t i = 0; i < runs.size(); i++) {
            if (runs[i].empty()) continue;
            runs_.push_back({uint32_t(text_.size()), uint32_t(runs[i].size()), double(counts[i])});
            text_ += runs[i];
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
        for (Piece& piece : pieces_) set(piece, std::log(piece.weight) - std::log(sum));
        return pieces_.size();
    }

    // One round of EM. sparse: with the prior that starves rare pieces (Liang and Klein 2007), and those are dropped;
    // otherwise plain maximum likelihood. Returns the log-likelihood of all runs before the round.
    double improve(bool sparse) {
        double likelihood = 0;
        std::vector<double> expected = expectations(likelihood);
        double sum = 0;
        std::vector<bool> keep(pieces_.size());
        for (size_t id = 0; id < pieces_.size(); id++) {
            const bool character = pieces_[id].size == 1;
            keep[id] = character || !sparse || expected[id] >= kRarest;
            if (character || !sparse) expected[id] = std::max(expected[id], sparse ? kRarest : 1e-3);
            if (keep[id]) sum += expected[id];
        }
        const double total = sparse ? digamma(sum) : std::log(sum);
        for (size_t id = 0; id < pieces_.size(); id++)
            if (keep[id]) set(pieces_[id], (sparse ? digamma(expected[id]) : std::log(expected[id])) - total);
        if (sparse) drop(keep);
        return likelihood;
    }

    // Drop the pieces without which the likelihood falls least, down to `least` or to `share` of what there are. What a
    // piece is worth: its occurrences in the best segmentation become those of its own second-best one.
    size_t prune(size_t least, double share) {
        const std::vector<double> found = occurrences();
        double sum = 0;
        for (double count : found) sum += count;
        const double log_sum = std::log(sum);
        std::vector<bool> keep(pieces_.size(), false);
        std::vector<std::pair<double, uint32_t>> losses;
        size_t kept = 0;
        std::vector<uint32_t> other;
        for (uint32_t id = 0; id < pieces_.size(); id++) {
            if (pieces_[id].size == 1) {
                keep[id] = true;
                kept++;
                continue;
            }
            if (found[id] == 0 || second_best(id, other) >= pieces_[id].log_p) continue;
            const double log_sum_other = std::log(sum + found[id] * double(other.size() - 1));
            double log_p_other = 0;
            for (uint32_t part : other) log_p_other += std::log(found[part] + found[id]) - log_sum_other;
            losses.emplace_back(-found[id] / sum * (std::log(found[id]) - log_sum - log_p_other), id);
        }
        std::sort(losses.begin(), losses.end());
        const size_t size = std::max(least, size_t(share * double(pieces_.size())));
        for (auto [loss, id] : losses) {
            if (kept >= size) break;
            keep[id] = true;
            kept++;
        }
        drop(keep);
        return pieces_.size();
    }

    // Keep the `size` most probable pieces, all characters among them.
    void finish(size_t size) {
        std::vector<std::pair<double, uint32_t>> order;
        std::vector<bool> keep(pieces_.size(), false);
        size_t kept = 0;
        std::vector<uint32_t> other;
        for (uint32_t id = 0; id < pieces_.size(); id++) {
            if (pieces_[id].size == 1)
                keep[id] = true, kept++;
            else if (second_best(id, other) <= pieces_[id].log_p)
                order.emplace_back(-pieces_[id].log_p, id);
        }
        std::sort(order.begin(), order.end());
        for (auto [worth, id] : order) {
            if (kept >= size) break;
            keep[id] = true;
            kept++;
        }
        drop(keep);
    }

    size_t size() const { return pieces_.size(); }
    std::u32string_view text(size_t id) const { return {text_.data() + pieces_[id].at, pieces_[id].size}; }
    double score(size_t id) const { return pieces_[id].log_p; }

  private:
    struct Run {
        uint32_t start, size;
        double count;
    };
    struct Piece {
        uint32_t at;  // where it stands for the first time in sorted order
        uint32_t size;
        double weight;  // of the seed
        double log_p;
    };
    struct Suffix {
        uint64_t key;  // its first characters, packed
        uint32_t at;
        uint32_t size;  // up to the end of the run, and kLongest
        double count;
    };
    struct Edge {  // a piece that stands somewhere in the text
        uint32_t id : 27;
        uint32_t size : 5;
    };

    void set(Piece& piece, double log_p) {
        piece.log_p = log_p;
        probabilities_.resize(pieces_.size());
        probabilities_[size_t(&piece - pieces_.data())] = std::exp(log_p);
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
        while (alphabet.size() >> bits) bits++;  // ranks from 1 on: 0 is "the run has ended"
        const uint32_t packed = uint32_t(std::min<size_t>(64 / size_t(bits), kLongest));
        std::vector<uint32_t> rank(alphabet.empty() ? 0 : alphabet.back() + 1);
        for (size_t i = 0; i < alphabet.size(); i++) rank[alphabet[i]] = uint32_t(i) + 1;
        std::vector<Suffix> suffixes;
        suffixes.reserve(text_.size());
        for (const Run& run : runs_)
            for (uint32_t i = 0; i < run.size; i++) {
                const uint32_t size = std::min<uint32_t>(run.size - i, kLongest);
                uint64_t key = 0;
                for (uint32_t j = 0; j < packed; j++) key = key << bits | (j < size ? rank[text_[run.start + i + j]] : 0);
                suffixes.push_back({key, run.start + i, size, run.count});
            }
        std::sort(suffixes.begin(), suffixes.end(), [&](const Suffix& a, const Suffix& b) {
            if (a.key != b.key) return a.key < b.key;
            const int order = text_.compare(a.at, a.size, text_, b.at, b.size);
            return order ? order < 0 : a.at < b.at;
        });
        return suffixes;
    }

    // The candidates, by a stack over the tree of common prefixes (Abouelhoda et al. 2004): a substring that is followed
    // by different characters, or ends its run, is a node of that tree; the suffixes below it are its occurrences.
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
                if (node.size > 1 && node.count >= 2) candidates.push_back({node.at, node.size, node.count * node.size, 0});
                if (!stack.empty() && stack.back().size >= down_to)
                    stack.back().count += node.count;
                else if (down_to > 0)
                    stack.push_back({down_to, node.count, node.at});
            }
        };
        for (size_t i = 0; i < suffixes.size(); i++) {
            const Suffix& suffix = suffixes[i];
            close(common[i]);
            if (common[i] == 0) characters.push_back({suffix.at, 1, 0, 0});
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
        if (candidates.size() > most) {
            std::nth_element(candidates.begin(), candidates.begin() + ptrdiff_t(most), candidates.end(), better);
            candidates.resize(most);
        }
        pieces_ = std::move(characters);
        pieces_.insert(pieces_.end(), candidates.begin(), candidates.end());
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
        constexpr uint32_t kGone = 0xFFFFFFFF;
        std::vector<uint32_t> now(pieces_.size(), kGone);
        uint32_t size = 0;
        for (size_t id = 0; id < pieces_.size(); id++) {
            if (!keep[id]) continue;
            now[id] = size;
            pieces_[size] = pieces_[id];
            probabilities_[size++] = probabilities_[id];
        }
        pieces_.resize(size);
        probabilities_.resize(size);
        uint32_t to = 0;
        for (size_t at = 0, from = 0; at < text_.size(); at++) {
            const uint32_t end = first_edge_[at + 1];
            first_edge_[at] = to;
            for (; from < end; from++)
                if (const uint32_t id = now[edges_[from].id]; id != kGone) edges_[to++] = {id, edges_[from].size};
        }
        first_edge_.back() = to;
        edges_.resize(to);
    }

    // Runs work(shard, first run, last run) for all shards, on as many threads as there are.
    void in_shards(const std::function<void(size_t, size_t, size_t)>& work) const {
        std::atomic<size_t> next = 0;
        const auto loop = [&] {
            for (size_t shard; (shard = next++) < kShards;)
                work(shard, runs_.size() * shard / kShards, runs_.size() * (shard + 1) / kShards);
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

    // E-step: how often each piece is expected over all segmentations of all runs, by forward and backward sums.
    std::vector<double> expectations(double& likelihood) const {
        std::vector<std::vector<double>> expected(kShards);
        std::vector<double> likelihoods(kShards, 0);
        in_shards([&](size_t shard, size_t first, size_t last) {
            expected[shard].assign(pieces_.size(), 0);
            Sums sums;
            for (size_t i = first; i < last; i++) likelihoods[shard] += expect(runs_[i], expected[shard], sums);
        });
        for (double part : likelihoods) likelihood += part;
        return sum(expected);
    }

    struct Sums {
        std::vector<double> forward, backward;
        std::vector<int> forward_scale, backward_scale;  // of each block of kLongest places: stored = true * 2^scale
    };

    // Returns count * log(sum over all segmentations of the run) and adds the run's expectations.
    double expect(const Run& run, std::vector<double>& expected, Sums& sums) const {
        auto& [forward, backward, forward_scale, backward_scale] = sums;
        const size_t size = run.size, blocks = size / kLongest + 1;
        const uint32_t* first = &first_edge_[run.start];
        forward.assign(size + kLongest + 1, 0);
        backward.assign(size + kLongest + 1, 0);
        forward_scale.assign(blocks + 1, 0);
        backward_scale.assign(blocks + 1, 0);
        forward[0] = 1;
        for (size_t at = 0; at < size; at++) {
            if (at % kLongest == 0 && at) rescale_forward(sums, at);
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
            double sum = 0;
            for (uint32_t i = first[at]; i < first[at + 1]; i++) {
                const size_t end = at + edges_[i].size;
                sum += probabilities_[edges_[i].id] * backward[end] * (end < border ? 1 : behind);
            }
            backward[at] = sum;
        }
        const int scale = forward_scale[size / kLongest];
        for (size_t at = 0; at < size; at++) {
            const size_t block = at / kLongest, border = (block + 1) * kLongest;
            const double here = forward[at] * run.count / forward[size];
            const int shift = scale - forward_scale[block];
            const double inside = here * power(shift - backward_scale[block]);
            const double behind = here * power(shift - backward_scale[block + 1]);
            for (uint32_t i = first[at]; i < first[at + 1]; i++) {
                const size_t end = at + edges_[i].size;
                expected[edges_[i].id] += probabilities_[edges_[i].id] * backward[end] * (end < border ? inside : behind);
            }
        }
        return run.count * (std::log(forward[size]) - scale * std::log(2.0));
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
        for (uint32_t at = 0; at < size; at++)
            for (uint32_t i = first_edge_[start + at]; i < first_edge_[start + at + 1]; i++) {
                const Edge edge = edges_[i];
                if (at + edge.size > size) break;
                const double score = best[at].score + pieces_[edge.id].log_p;
                if (edge.id != without && score > best[at + edge.size].score) best[at + edge.size] = {score, at, edge.id};
            }
        ids.clear();
        for (uint32_t end = size; end > 0; end = best[end].start) ids.push_back(best[end].id);
        std::reverse(ids.begin(), ids.end());
        return best[size].score;
    }

    double second_best(uint32_t id, std::vector<uint32_t>& ids) {
        return best(pieces_[id].at, pieces_[id].size, id, scratch_, ids);
    }

    // How often each piece occurs in the best segmentations of all runs.
    std::vector<double> occurrences() const {
        std::vector<std::vector<double>> found(kShards);
        in_shards([&](size_t shard, size_t first, size_t last) {
            found[shard].assign(pieces_.size(), 0);
            std::vector<Best> scratch;
            std::vector<uint32_t> ids;
            for (size_t i = first; i < last; i++) {
                best(runs_[i].start, runs_[i].size, uint32_t(pieces_.size()), scratch, ids);
                for (uint32_t id : ids) found[shard][id] += runs_[i].count;
            }
        });
        return sum(found);
    }

    size_t threads_;
    std::u32string text_;  // all runs, one after the other
    std::vector<Run> runs_;
    std::vector<Piece> pieces_;
    std::vector<double> probabilities_;  // of each piece
    std::vector<uint32_t> first_edge_;   // of each place in the text, and the end
    std::vector<Edge> edges_;
    std::vector<Best> scratch_;
};

}  // namespace tinylm::unigram_training
