// The pieces of a Unigram vocabulary in training, and where they stand in the words: what the steps of training share.
// No Python here. Which pieces stand where is worked out once (unigram_seed.hpp) and kept as lists of edges; every
// later step only walks along them: unigram_expect.hpp, unigram_train.hpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "threads.hpp"

namespace tinylm::unigram_training {

constexpr size_t kLongest = 16;  // characters in a piece
constexpr size_t kShards = 8;
constexpr double kPenalty = 10;  // an unknown character is that much less likely than the rarest piece
constexpr uint32_t kUnknown = (1u << 27) - 1;  // the id of a character that is no piece

struct Lattice {
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
    struct Edge {  // a piece that stands somewhere in the text
        uint32_t id : 27;
        uint32_t size : 5;
    };

    size_t threads = 1;
    std::u32string text;  // all words, one after the other
    std::vector<Word> words;
    std::vector<Piece> pieces;
    std::vector<double> probabilities;  // of each piece
    double lowest = 0, unknown = 0;     // the lowest log-probability; the probability of an unknown character
    std::vector<uint32_t> first_edge;   // of each place in the text, and the end
    std::vector<Edge> edges;

    std::u32string_view piece(uint32_t id) const { return {text.data() + pieces[id].at, pieces[id].size}; }

    // What follows from the log-probabilities.
    void update() {
        probabilities.resize(pieces.size());
        lowest = 0;
        for (size_t id = 0; id < pieces.size(); id++) {
            probabilities[id] = std::exp(pieces[id].log_p);
            lowest = std::min(lowest, pieces[id].log_p);
        }
        unknown = std::exp(lowest - kPenalty);
    }

    // Whether a piece of one character begins at a place of the text; if not, an unknown one does.
    bool known(size_t at) const {
        return first_edge[at] < first_edge[at + 1] && edges[first_edge[at]].size == 1;
    }

    // Pieces that are not kept, and their edges, go; the others get new ids in the same order.
    void drop(const std::vector<bool>& keep) {
        std::vector<uint32_t> now(pieces.size(), kUnknown), places(pieces.size(), 0);
        uint32_t size = 0;
        for (uint32_t id = 0; id < pieces.size(); id++) {
            if (!keep[id]) continue;
            places[pieces[id].order] = 1;
            now[id] = size;
            pieces[size++] = pieces[id];
        }
        pieces.resize(size);
        for (size_t i = 1; i < places.size(); i++) places[i] += places[i - 1];
        for (Piece& piece : pieces) piece.order = places[piece.order] - 1;
        uint32_t to = 0;
        for (size_t at = 0, from = 0; at < text.size(); at++) {
            const uint32_t end = first_edge[at + 1];
            first_edge[at] = to;
            for (; from < end; from++)
                if (const uint32_t id = now[edges[from].id]; id != kUnknown) edges[to++] = {id, edges[from].size};
        }
        first_edge.back() = to;
        edges.resize(to);
        update();
    }

    // Runs work(shard, first word, last word) for all shards, on as many threads as there are. What one of
    // them throws is thrown on when all have ended.
    void in_shards(const std::function<void(size_t, size_t, size_t)>& work) const {
        std::atomic<size_t> next = 0;
        std::vector<std::exception_ptr> thrown(threads);
        const auto loop = [&](size_t thread) {
            try {
                for (size_t shard; (shard = next++) < kShards;)
                    work(shard, words.size() * shard / kShards, words.size() * (shard + 1) / kShards);
            } catch (...) {
                thrown[thread] = std::current_exception();
            }
        };
        std::vector<std::thread> others = start_threads(threads - 1, loop);
        loop(0);
        for (std::thread& thread : others) thread.join();
        rethrow_first(thrown);
    }

    static std::vector<double> sum(const std::vector<std::vector<double>>& shards) {
        std::vector<double> total = shards[0];
        for (size_t shard = 1; shard < shards.size(); shard++)
            for (size_t i = 0; i < total.size(); i++) total[i] += shards[shard][i];
        return total;
    }

    struct Best {
        double score;
        uint32_t start, id;
    };

    // The best segmentation of `size` characters from `start` on (Viterbi); the piece `without` is not allowed.
    double best(uint32_t start, uint32_t size, uint32_t without, std::vector<Best>& best,
                std::vector<uint32_t>& ids) const {
        best.assign(size + 1, {-std::numeric_limits<double>::infinity(), 0, 0});
        best[0].score = 0;
        const auto offer = [&](uint32_t at, uint32_t end, double score, uint32_t id) {
            if (best[at].score + score > best[end].score) best[end] = {best[at].score + score, at, id};
        };
        for (uint32_t at = 0; at < size; at++) {
            if (!known(start + at)) offer(at, at + 1, lowest - kPenalty, kUnknown);
            for (uint32_t i = first_edge[start + at]; i < first_edge[start + at + 1]; i++) {
                const Edge edge = edges[i];
                if (at + edge.size > size) break;
                if (edge.id != without) offer(at, at + edge.size, pieces[edge.id].log_p, edge.id);
            }
        }
        ids.clear();
        for (uint32_t end = size; end > 0; end = best[end].start) ids.push_back(best[end].id);
        std::reverse(ids.begin(), ids.end());
        return best[size].score;
    }

    // How often each piece is used in the best segmentations of all words.
    std::vector<double> uses() const {
        std::vector<std::vector<double>> found(kShards);
        in_shards([&](size_t shard, size_t first, size_t last) {
            found[shard].assign(pieces.size(), 0);
            std::vector<Best> scratch;
            std::vector<uint32_t> ids;
            for (size_t i = first; i < last; i++) {
                best(words[i].start, words[i].size, kUnknown, scratch, ids);
                for (uint32_t id : ids)
                    if (id != kUnknown) found[shard][id] += words[i].count;
            }
        });
        return sum(found);
    }
};

}  // namespace tinylm::unigram_training
