// Learning the pieces of a SentencePiece-BPE vocabulary. No Python here. The readable version is
// sentencepiece_bpe_training.py.
//
// Each run is a linked list of symbols; a pair knows its count and where it occurs (or occurred), so that joining it
// touches nothing else. Order: the highest count, then the shortest text, then the smallest text, then the shortest
// left.
#pragma once

#include <queue>
#include <string>
#include <unordered_set>
#include <vector>

#include "sentencepiece_bpe.hpp"
#include "sentencepiece_words.hpp"

namespace tinylm::sentencepiece {

class BpeTrainer {
  public:
    // runs: distinct, with their counts; classes: see Classes. longest: characters in a piece.
    BpeTrainer(const std::vector<std::u32string>& runs, const std::vector<int64_t>& counts, const Classes& classes,
               size_t longest)
        : longest_(longest) {
        std::unordered_map<char32_t, uint32_t> characters;
        for (size_t run = 0; run < runs.size(); run++)
            for (size_t i = 0; i < runs[run].size(); i++) {
                const char32_t point = runs[run][i];
                const auto [found, is_new] = characters.try_emplace(point, uint32_t(symbols_.size()));
                if (is_new) symbols_.push_back({std::u32string(1, point), classes.of(point)});
                const auto cell = uint32_t(cells_.size());
                cells_.push_back({found->second, i ? cell - 1 : kNone, i + 1 < runs[run].size() ? cell + 1 : kNone,
                                  uint32_t(run)});
            }
        counts_ = counts;
        for (uint32_t cell = 0; cell < cells_.size(); cell++) add(cell, cells_[cell].next);
        push_grown();
    }

    // Up to `most` further pieces; fewer when no pair is left.
    std::vector<std::u32string> step(size_t most) {
        std::vector<std::u32string> pieces;
        while (pieces.size() < most && !heap_.empty()) {
            const Entry entry = heap_.top();
            heap_.pop();
            Pair& pair = pairs_[entry.pair];
            if (pair.gone || pair.count <= 0) continue;
            if (pair.count != entry.count) {  // it was counted down since it was pushed
                if (pair.count < entry.count) heap_.push({pair.count, entry.pair, this});
                continue;
            }
            pair.gone = true;
            if (!done_.insert(pair.text).second) continue;  // a piece already, joined of other parts
            pieces.push_back(pair.text);
            join(entry.pair);
            push_grown();
        }
        return pieces;
    }

  private:
    struct Cell {
        uint32_t symbol;  // kNone: part of the symbol before
        uint32_t previous, next;
        uint32_t run;
    };
    struct Symbol {
        std::u32string text;
        uint16_t type;  // the class of its characters
    };
    struct Pair {
        uint32_t left, right;
        int64_t count;
        bool gone, grown;
        std::vector<uint32_t> where;  // cells of the left symbol
        std::u32string text;
    };
    struct Entry {
        int64_t count;
        uint32_t pair;
        const BpeTrainer* trainer;
        bool operator<(const Entry& other) const {  // std::priority_queue gives the greatest first
            if (count != other.count) return count < other.count;
            const Pair &mine = trainer->pairs_[pair], &its = trainer->pairs_[other.pair];
            if (mine.text.size() != its.text.size()) return mine.text.size() > its.text.size();
            if (const int order = mine.text.compare(its.text)) return order > 0;
            return trainer->symbols_[mine.left].text.size() > trainer->symbols_[its.left].text.size();
        }
    };

    // The pair of the symbols in two neighbouring cells; null: no piece may hold both.
    Pair* pair_at(uint32_t left_cell, uint32_t right_cell) {
        if (left_cell == kNone || right_cell == kNone) return nullptr;
        const uint32_t left = cells_[left_cell].symbol, right = cells_[right_cell].symbol;
        const Symbol &a = symbols_[left], &b = symbols_[right];
        if (a.text.size() + b.text.size() > longest_ || !Classes::join(a.type, b.type)) return nullptr;
        const auto [found, is_new] = index_.try_emplace(uint64_t(left) << 32 | right, uint32_t(pairs_.size()));
        if (is_new) pairs_.push_back({left, right, 0, false, false, {}, a.text + b.text});
        return &pairs_[found->second];
    }

    void add(uint32_t left_cell, uint32_t right_cell) {
        Pair* pair = pair_at(left_cell, right_cell);
        if (!pair || pair->gone) return;
        pair->count += counts_[cells_[left_cell].run];
        pair->where.push_back(left_cell);
        if (!pair->grown) grown_.push_back(uint32_t(pair - pairs_.data()));
        pair->grown = true;
    }

    void take_away(uint32_t left_cell, uint32_t right_cell) {
        if (Pair* pair = pair_at(left_cell, right_cell)) pair->count -= counts_[cells_[left_cell].run];
    }

    void push_grown() {
        for (uint32_t pair : grown_) {
            pairs_[pair].grown = false;
            heap_.push({pairs_[pair].count, pair, this});
        }
        grown_.clear();
    }

    void join(uint32_t index) {
        const uint32_t left = pairs_[index].left, right = pairs_[index].right;
        const std::vector<uint32_t> where = std::move(pairs_[index].where);
        const auto joined = uint32_t(symbols_.size());
        const uint16_t type = std::max(symbols_[left].type, symbols_[right].type);
        symbols_.push_back({pairs_[index].text, type});
        for (uint32_t cell : where) {
            const uint32_t gone = cells_[cell].next;
            if (cells_[cell].symbol != left || gone == kNone || cells_[gone].symbol != right) continue;
            const uint32_t before = cells_[cell].previous, after = cells_[gone].next;
            take_away(before, cell);
            take_away(gone, after);
            cells_[cell].symbol = joined;
            cells_[cell].next = after;
            cells_[gone].symbol = kNone;
            if (after != kNone) cells_[after].previous = cell;
            add(before, cell);
            add(cell, after);
        }
    }

    struct Hash {
        size_t operator()(uint64_t key) const { return mix(key); }
    };
    struct TextHash {
        size_t operator()(const std::u32string& text) const {
            return std::hash<std::string_view>()({reinterpret_cast<const char*>(text.data()), 4 * text.size()});
        }
    };

    size_t longest_;
    std::vector<Cell> cells_;
    std::vector<int64_t> counts_;  // of each run
    std::vector<Symbol> symbols_;
    std::vector<Pair> pairs_;
    std::unordered_map<uint64_t, uint32_t, Hash> index_;
    std::unordered_set<std::u32string, TextHash> done_;
    std::priority_queue<Entry> heap_;
    std::vector<uint32_t> grown_;
};

}  // namespace tinylm::sentencepiece
