// Learning WordPiece pieces: the pieces of wordpiece_training.py, in the same order. No Python here.
//
// Each join takes the pair that makes the corpus likelier than any other, and a pair's gain changes with every join,
// because the count of all pieces is in it. What makes it quick:
//
//   - The gain is a part of the pair's own (`Gain::own`: its count c, and the counts l and r of its two pieces) and a part
//     that depends on c and on the number of all pieces only. Pairs of one count keep their order when that number
//     changes, so they share a heap, and each heap's first pair is all that has to be looked at.
//   - The part of its own grows as l and r shrink. Each heap is ordered by what it would be if they shrank to a floor a
//     little lower, so that a pair has to be scored anew only when a piece falls below its floor.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "count.hpp"
#include "wordpiece_words.hpp"

namespace tinylm {

class WordCounts {
  public:
    WordCounts(CharacterTable characters, bool lower) : basic_(std::move(characters), lower) {}

    void count(std::string_view text) {
        basic_.words(text, word_, *this);
        counts_.flush();
    }

    void letters(uint64_t low, uint64_t high, int size) {
        char bytes[16];
        std::memcpy(bytes, &low, 8);
        std::memcpy(bytes + 8, &high, 8);
        counts_.add({bytes, size_t(size)}, bytes + 16);
    }

    void mark(uint8_t character) {
        const char byte = char(character);
        counts_.add({&byte, 1}, &byte + 1);
    }

    void word(std::string_view bytes) { counts_.add(bytes, bytes.data() + bytes.size()); }

    const PieceCounts& counts() const { return counts_; }
    void absorb(WordCounts& other) {  // and empty it
        counts_.absorb(other.counts_);
        other.counts_ = {};
    }
    PieceCounts take() { return std::exchange(counts_, {}); }

  private:
    BasicTokenizer basic_;
    Word word_ = Word(std::numeric_limits<size_t>::max());
    PieceCounts counts_;
};

// How much likelier the corpus becomes by a join: see `likelihood_gain` in wordpiece_training.py.
struct Gain {
    static double rest(double n, double c) { return n > c ? (n - c) * std::log1p(-c / n) : 0; }
    static double own(double c, double l, double r) { return c * std::log(c / (l * r)) + (rest(l, c) + rest(r, c)); }
    static double common(double c, double all) { return c * std::log(all) - rest(all, c); }
};

class WordPieceTrainer {
  public:
    // most: characters that are kept, the commonest; words with another one are left out.
    WordPieceTrainer(const PieceCounts& counts, size_t most) {
        std::vector<std::pair<std::string, int64_t>> words;
        words.reserve(counts.distinct());
        counts.for_each(0, 1, [&](std::string_view word, int64_t count) { words.emplace_back(word, count); });
        std::sort(words.begin(), words.end());
        const std::unordered_set<uint32_t> kept = commonest(words, most);
        std::unordered_map<uint32_t, uint32_t> first, later;  // a character that begins a word, or does not → its piece
        for (const auto& [word, count] : words) {
            const size_t start = cells_.size();
            const char *at = word.data(), *end = at + word.size();
            bool whole = true;
            while (whole && at < end) whole = kept.contains(next_character(at));
            for (at = word.data(); whole && at < end;) {
                const bool begins = at == word.data();
                const char* from = at;
                const uint32_t code = next_character(at);
                const auto [found, is_new] = (begins ? first : later).try_emplace(code, uint32_t(pieces_.size()));
                if (is_new) new_piece((begins ? "" : "##") + std::string(from, at));
                cells_.push_back(found->second);
                pieces_[found->second].count += count;
                all_ += count;
            }
            if (whole) words_.push_back({start, uint32_t(cells_.size() - start), count});
        }
        for (const Piece& piece : pieces_) alphabet_.push_back(piece.name);
        std::sort(alphabet_.begin(), alphabet_.end());
        for (uint32_t word = 0; word < words_.size(); word++)
            for (uint32_t i = 1; i < words_[word].size; i++) add(word, cell(word, i - 1), cell(word, i));
        for (uint32_t piece = 0; piece < pieces_.size(); piece++) set_floor(piece);
        refresh_changed();
    }

    const std::vector<std::string>& alphabet() const { return alphabet_; }  // the pieces of one character, sorted

    // Up to `most` further pieces; fewer when no join makes the corpus likelier.
    std::vector<std::string> step(size_t most) {
        std::vector<std::string> learned;
        while (learned.size() < most) {
            const std::optional<uint32_t> pair = best();
            if (!pair) break;
            std::string name = pieces_[pairs_[*pair].left].name;
            const std::string& right = pieces_[pairs_[*pair].right].name;
            name += right.starts_with("##") ? std::string_view(right).substr(2) : std::string_view(right);
            const auto [found, is_new] = numbers_.try_emplace(name, uint32_t(pieces_.size()));
            if (is_new) {
                new_piece(name);
                learned.push_back(name);
            }
            join(*pair, found->second);
        }
        return learned;
    }

  private:
    struct Span {  // a word: its pieces in cells_, and how often it occurs
        size_t start;
        uint32_t size;
        int64_t count;
    };
    struct Piece {
        std::string name;
        int64_t count = 0, floor = 0;
        std::vector<uint32_t> pairs;  // on either side of it
    };
    struct Pair {
        uint32_t left, right;
        int64_t count = 0;
        double bound = kNoBound;  // of its entry in the heap of its count
        bool changed = false;
        std::vector<uint32_t> words;  // that have held it; a word may be there twice
    };
    struct Entry {
        double bound;
        uint32_t pair;
        bool operator<(const Entry& other) const {  // std heaps have the greatest first: of equal ones the pair met first
            return bound != other.bound ? bound < other.bound : pair > other.pair;
        }
    };
    struct Best {
        double own = 0, gain = 0;
        uint32_t pair = 0;
    };
    static constexpr double kNoBound = std::numeric_limits<double>::infinity();

    static std::unordered_set<uint32_t> commonest(const std::vector<std::pair<std::string, int64_t>>& words, size_t most) {
        std::unordered_map<uint32_t, int64_t> counts;
        for (const auto& [word, count] : words)
            for (const char* at = word.data(); at < word.data() + word.size();) counts[next_character(at)] += count;
        std::vector<std::pair<int64_t, uint32_t>> sorted;
        for (const auto& [code, count] : counts) sorted.emplace_back(-count, code);
        std::sort(sorted.begin(), sorted.end());
        sorted.resize(std::min(sorted.size(), most));
        std::unordered_set<uint32_t> kept;
        for (const auto& [count, code] : sorted) kept.insert(code);
        return kept;
    }

    void new_piece(const std::string& name) {
        numbers_.try_emplace(name, uint32_t(pieces_.size()));
        pieces_.emplace_back().name = name;
    }

    uint32_t& cell(uint32_t word, uint32_t place) { return cells_[words_[word].start + place]; }

    uint32_t pair_number(uint32_t left, uint32_t right) {
        const auto [found, is_new] = index_.try_emplace(uint64_t(left) << 32 | right, uint32_t(pairs_.size()));
        if (is_new) {
            pairs_.emplace_back(Pair{left, right, 0, kNoBound, false, {}});
            pieces_[left].pairs.push_back(found->second);
            if (left != right) pieces_[right].pairs.push_back(found->second);
        }
        return found->second;
    }

    uint32_t change(uint32_t left, uint32_t right, int64_t by) {
        const uint32_t number = pair_number(left, right);
        Pair& pair = pairs_[number];
        pair.count += by;
        if (!pair.changed) changed_.push_back(number);
        pair.changed = true;
        return number;
    }

    void add(uint32_t word, uint32_t left, uint32_t right) {
        std::vector<uint32_t>& words = pairs_[change(left, right, words_[word].count)].words;
        if (words.empty() || words.back() != word) words.push_back(word);
    }

    // Write `pair` as one piece wherever it stands, from left to right.
    void join(uint32_t pair, uint32_t piece) {
        const uint32_t left = pairs_[pair].left, right = pairs_[pair].right;
        std::vector<uint32_t> words = std::move(pairs_[pair].words);
        pairs_[pair].words.clear();
        std::sort(words.begin(), words.end());
        words.erase(std::unique(words.begin(), words.end()), words.end());
        for (uint32_t word : words) join_in(word, left, right, piece);
        for (uint32_t part : {left, right, piece})
            if (pieces_[part].count < pieces_[part].floor || part == piece) set_floor(part);
        refresh_changed();
    }

    void join_in(uint32_t word, uint32_t left, uint32_t right, uint32_t piece) {
        Span& span = words_[word];
        old_.assign(cells_.begin() + ptrdiff_t(span.start), cells_.begin() + ptrdiff_t(span.start + span.size));
        from_.clear();  // of each new cell: the old cell that it begins with
        uint32_t joins = 0;
        for (uint32_t i = 0; i < old_.size(); i++) {
            const bool joined = i + 1 < old_.size() && old_[i] == left && old_[i + 1] == right;
            cell(word, uint32_t(from_.size())) = joined ? piece : old_[i];
            from_.push_back(i);
            joins += joined;
            i += joined;
        }
        if (!joins) return;
        span.size = uint32_t(from_.size());
        from_.push_back(uint32_t(old_.size()));
        const auto is_joined = [&](uint32_t place) { return place < span.size && from_[place + 1] - from_[place] == 2; };
        for (uint32_t i = 0; i < span.size; i++) {  // the pairs that are gone: in a join, and where one or two meet
            if (is_joined(i)) change(left, right, -span.count);
            if (i + 1 < span.size && (is_joined(i) || is_joined(i + 1)))
                change(old_[from_[i + 1] - 1], old_[from_[i + 1]], -span.count);
        }
        for (uint32_t i = 0; i + 1 < span.size; i++)
            if (is_joined(i) || is_joined(i + 1)) add(word, cell(word, i), cell(word, i + 1));
        const int64_t times = joins * span.count;
        pieces_[piece].count += times;
        pieces_[left].count -= times;
        pieces_[right].count -= times;
        all_ -= times;
    }

    // ---- which pair is the best ----

    // A floor for a piece's count; its pairs are scored for it.
    void set_floor(uint32_t piece) {
        pieces_[piece].floor = pieces_[piece].count - pieces_[piece].count / 32;
        for (uint32_t pair : pieces_[piece].pairs) refresh(pair);
    }

    void refresh_changed() {
        for (uint32_t pair : changed_) {
            pairs_[pair].changed = false;
            pairs_[pair].bound = kNoBound;  // its entry is in the heap of another count
            refresh(pair);
        }
        changed_.clear();
    }

    void refresh(uint32_t number) {
        Pair& pair = pairs_[number];
        if (pair.count == 0 || pair.changed) return;
        const auto at_least = [&](uint32_t piece) { return double(std::max(pieces_[piece].floor, pair.count)); };
        const double bound = Gain::own(double(pair.count), at_least(pair.left), at_least(pair.right));
        if (bound == pair.bound) return;
        pair.bound = bound;
        const auto [found, is_new] = heap_of_.try_emplace(pair.count, uint32_t(heaps_.size()));
        if (is_new) {
            heaps_.emplace_back();
            tops_.push_back(bound);
            counts_.push_back(double(pair.count));
        }
        std::vector<Entry>& entries = heaps_[found->second];
        entries.push_back({bound, number});
        std::push_heap(entries.begin(), entries.end());
        tops_[found->second] = entries.front().bound;
    }

    // The pair of the highest gain above 0.
    std::optional<uint32_t> best() {
        // (n - c) log(1 - c/n) is above -c, so this is above the gain of every pair of a heap.
        const double common = std::log(double(all_)) + 1;
        const auto most = [&](size_t heap) { return tops_[heap] + counts_[heap] * common; };
        size_t first = 0;
        for (size_t heap = 1; heap < heaps_.size(); heap++)
            if (most(heap) > most(first)) first = heap;
        if (heaps_.empty() || most(first) <= 0) return std::nullopt;
        std::optional<Best> best = best_of(first);
        for (size_t heap = 0; heap < heaps_.size(); heap++) {
            if (heap == first || most(heap) <= 0 || (best && most(heap) < best->gain)) continue;
            const std::optional<Best> found = best_of(heap);
            if (found && (!best || found->gain > best->gain || (found->gain == best->gain && found->pair < best->pair)))
                best = found;
        }
        if (!best || best->gain <= 0) return std::nullopt;
        return best->pair;
    }

    std::optional<Best> best_of(size_t heap) {
        std::optional<Best> best;
        std::vector<Entry>& entries = heaps_[heap];
        const auto count = int64_t(counts_[heap]);
        looked_at_.clear();
        while (!entries.empty()) {
            const Entry top = entries.front();
            if (best && (top.bound < best->own || (top.bound == best->own && top.pair > best->pair))) break;
            std::pop_heap(entries.begin(), entries.end());
            entries.pop_back();
            const Pair& pair = pairs_[top.pair];
            if (pair.count != count || pair.bound != top.bound) continue;  // an old entry
            looked_at_.push_back(top);
            const double left = double(pieces_[pair.left].count), right = double(pieces_[pair.right].count);
            const double own = Gain::own(double(pair.count), left, right);
            if (!best || own > best->own || (own == best->own && top.pair < best->pair)) best = Best{own, 0, top.pair};
        }
        for (const Entry& entry : looked_at_) {
            entries.push_back(entry);
            std::push_heap(entries.begin(), entries.end());
        }
        tops_[heap] = entries.empty() ? -kNoBound : entries.front().bound;
        if (best) best->gain = best->own + Gain::common(counts_[heap], double(all_));
        return best;
    }

    std::vector<uint32_t> cells_;
    std::vector<Span> words_;
    std::vector<Piece> pieces_;
    std::vector<std::string> alphabet_;
    std::unordered_map<std::string, uint32_t> numbers_;  // name → piece
    std::vector<Pair> pairs_;                            // in the order in which they were met
    std::unordered_map<uint64_t, uint32_t> index_;       // left << 32 | right → pair
    std::vector<std::vector<Entry>> heaps_;  // each of all pairs with one count; old entries stay until they are met
    std::vector<double> counts_, tops_;      // of each heap: the count, and the bound of its first entry
    std::unordered_map<int64_t, uint32_t> heap_of_;  // count → place in heaps_
    int64_t all_ = 0;                                // pieces in the corpus
    // Room that is used again.
    std::vector<uint32_t> changed_, old_, from_;
    std::vector<Entry> looked_at_;
};

}  // namespace tinylm
