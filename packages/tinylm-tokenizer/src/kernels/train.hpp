// Learning the merges. No Python here. The readable version is byte_bpe.py: train_merges; the incremental one that this
// file follows step by step is byte_bpe_fast.py: train_merges.
#pragma once

#include <algorithm>
#include <cstdint>
#include <queue>
#include <unordered_map>
#include <utility>
#include <vector>

#include "merge.hpp"

namespace tinylm {

using Pair = std::pair<uint32_t, uint32_t>;

class Trainer {
  public:
    // words: the ids of each distinct piece; counts: how often it occurs.
    Trainer(std::vector<std::vector<uint32_t>> words, std::vector<int64_t> counts)
        : words_(std::move(words)), counts_(std::move(counts)) {
        for (uint32_t index = 0; index < words_.size(); index++) add_pairs(index, +1, kNone);
        for (auto& [key, pair] : pairs_) heap_.push({pair.count, key});
    }

    // Learn up to `wanted` further merges; fewer when no pair is left.
    std::vector<Pair> step(size_t wanted) {
        std::vector<Pair> merges;
        while (merges.size() < wanted && !heap_.empty()) {
            const Entry best = heap_.top();
            heap_.pop();
            auto found = pairs_.find(best.key);
            const int64_t count = found == pairs_.end() ? 0 : found->second.count;
            if (count != best.count) {  // an old entry: the count went down since it was pushed
                if (count > 0) heap_.push({count, best.key});
                continue;
            }
            const Pair pair{uint32_t(best.key >> 32), uint32_t(best.key)};
            const std::vector<uint32_t> where = std::move(found->second.where);
            for (uint32_t index : where) {
                add_pairs(index, -1, kNone - 1);
                merge(words_[index], pair, next_id_);
                add_pairs(index, +1, next_id_);
            }
            pairs_.erase(best.key);
            std::sort(grown_.begin(), grown_.end());
            grown_.erase(std::unique(grown_.begin(), grown_.end()), grown_.end());
            for (uint64_t key : grown_) heap_.push({pairs_[key].count, key});
            grown_.clear();
            merges.push_back(pair);
            next_id_++;
        }
        return merges;
    }

  private:
    struct Counted {
        int64_t count = 0;
        std::vector<uint32_t> where;  // words that hold the pair, or held it
    };
    struct Entry {
        int64_t count;
        uint64_t key;
        bool operator<(const Entry& other) const {  // greatest first: highest count, then the smallest pair
            return count != other.count ? count < other.count : key > other.key;
        }
    };
    struct Hash {
        size_t operator()(uint64_t key) const { return mix(key); }
    };

    // Count the pairs of one word in (+1) or out (-1). Only pairs with `new_id` are new to the word (kNone: all are).
    void add_pairs(uint32_t index, int64_t sign, uint32_t new_id) {
        const std::vector<uint32_t>& word = words_[index];
        for (size_t i = 0; i + 1 < word.size(); i++) {
            const uint64_t key = pair_key(word[i], word[i + 1]);
            Counted& pair = pairs_[key];
            pair.count += sign * counts_[index];
            if (new_id != kNone && word[i] != new_id && word[i + 1] != new_id) continue;
            if (pair.where.empty() || pair.where.back() != index) pair.where.push_back(index);
            if (new_id != kNone) grown_.push_back(key);
        }
    }

    static void merge(std::vector<uint32_t>& word, Pair pair, uint32_t new_id) {
        size_t kept = 0;
        for (size_t i = 0; i < word.size(); i++) {
            if (i + 1 < word.size() && word[i] == pair.first && word[i + 1] == pair.second) {
                word[kept++] = new_id;
                i++;
            } else {
                word[kept++] = word[i];
            }
        }
        word.resize(kept);
    }

    std::vector<std::vector<uint32_t>> words_;
    std::vector<int64_t> counts_;
    std::unordered_map<uint64_t, Counted, Hash> pairs_;
    std::priority_queue<Entry> heap_;
    std::vector<uint64_t> grown_;
    uint32_t next_id_ = 256;
};

}  // namespace tinylm
