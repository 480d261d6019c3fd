// BPE as SentencePiece does it: two neighbours merge if their joined text is a piece, the best score first, then the
// leftmost. No Python here. The readable version is sentencepiece_bpe.py.
#pragma once

#include <bit>
#include <queue>
#include <unordered_map>

#include "hash.hpp"
#include "sentencepiece_text.hpp"
#include "sentencepiece_trie.hpp"

namespace tinylm::sentencepiece {

// A stretch of the text that became one id; id kNone: a character that no piece covers.
struct Token {
    uint32_t id;
    uint32_t size;  // bytes
};

class Bpe {
  public:
    struct Rule {
        uint32_t left, right, rank, result;
    };

    // texts: of the pieces that may be found in text, in the internal writing (others: empty). The characters of a
    // piece need not be pieces themselves: they are symbols with ids from texts.size() on. rules: given
    // (tokenizer.json), or empty: every split of a piece into two symbols, ranked by its score.
    Bpe(const std::vector<std::string>& texts, const std::vector<float>& scores, std::vector<Rule> rules, bool given)
        : pieces_(uint32_t(texts.size())) {
        std::fill(std::begin(bytes_), std::end(bytes_), kNone);
        std::unordered_map<std::string_view, uint32_t> symbols;
        uint32_t next = pieces_;
        for (uint32_t id = 0; id < pieces_; id++)
            if (!texts[id].empty()) symbols.emplace(texts[id], id);
        for (const std::string& text : texts)
            for (size_t i = 0, size; i < text.size(); i += size) {
                size = std::min(text.size() - i, character_size(static_cast<unsigned char>(text[i])));
                const std::string_view character(text.data() + i, size);
                auto found = symbols.find(character);
                if (found == symbols.end()) found = symbols.emplace(character, next++).first;
                characters_[pack(character.data(), size)] = found->second;
            }
        for (auto [packed, id] : characters_)
            if (packed < 256) bytes_[packed] = id;
        if (!given)
            for (uint32_t id = 0; id < pieces_; id++) split(texts[id], id, rank(scores[id]), symbols, rules);
        size_t slots = 16;
        while (slots < 2 * rules.size()) slots *= 2;
        slots_.resize(slots);
        for (const Rule& rule : rules) {
            Slot& slot = slots_[slot_of(uint64_t(rule.left) << 32 | rule.right)];
            if (slot.merge.rank == kNone) slot = {uint64_t(rule.left) << 32 | rule.right, {rule.rank, rule.result}};
        }
    }

    struct Merge {
        uint32_t rank = kNone, result = kNone;
    };
    struct Scratch {
        std::vector<uint32_t> ids, sizes, preceding, following;
        std::vector<Merge> next;
    };

    void encode(std::string_view text, Scratch& scratch, std::vector<Token>& tokens) const {
        scratch.ids.clear();
        scratch.sizes.clear();
        for (size_t i = 0, size; i < text.size(); i += size) {
            const auto byte = static_cast<unsigned char>(text[i]);
            size = std::min(text.size() - i, character_size(byte));
            scratch.ids.push_back(size == 1 ? bytes_[byte] : symbol(pack(&text[i], size)));
            scratch.sizes.push_back(uint32_t(size));
        }
        if (scratch.ids.size() <= 40)
            merge_short(scratch);
        else
            merge_long(scratch);
        tokens.clear();
        for (size_t i = 0; i < scratch.ids.size(); i++)
            if (scratch.sizes[i])
                tokens.push_back({scratch.ids[i] < pieces_ ? scratch.ids[i] : kNone, scratch.sizes[i]});
    }

  private:
    struct Slot {
        uint64_t pair = 0;
        Merge merge;  // rank kNone: the slot is empty
    };

    static uint32_t pack(const char* bytes, size_t size) {
        uint32_t packed = 0;
        std::memcpy(&packed, bytes, size);
        return packed;
    }

    // The higher the score the lower the rank; equal scores have equal ranks. (-0.0 counts as lower than 0.0, as
    // there.)
    static uint32_t rank(float score) {
        const auto bits = std::bit_cast<uint32_t>(score);
        return bits >> 31 ? bits : 0x7FFFFFFF - bits;
    }

    static void split(std::string_view text, uint32_t id, uint32_t rank,
                      const std::unordered_map<std::string_view, uint32_t>& symbols, std::vector<Rule>& rules) {
        for (size_t i = 0; i < text.size();) {
            i += character_size(static_cast<unsigned char>(text[i]));
            if (i >= text.size()) break;
            const auto left = symbols.find(text.substr(0, i)), right = symbols.find(text.substr(i));
            if (left != symbols.end() && right != symbols.end())
                rules.push_back({left->second, right->second, rank, id});
        }
    }

    uint32_t symbol(uint32_t character) const {
        const auto found = characters_.find(character);
        return found == characters_.end() ? kNone : found->second;
    }

    size_t slot_of(uint64_t pair) const {
        size_t slot = mix(pair) & (slots_.size() - 1);
        while (slots_[slot].merge.rank != kNone && slots_[slot].pair != pair) slot = (slot + 1) & (slots_.size() - 1);
        return slot;
    }

    Merge find(uint32_t left, uint32_t right) const {
        if (left == kNone || right == kNone) return {};
        return slots_[slot_of(uint64_t(left) << 32 | right)].merge;
    }

    // A short word: the merge of each neighbouring pair is kept, the lowest rank found by looking through all of them.
    void merge_short(Scratch& scratch) const {
        auto& [ids, sizes, preceding, following, next] = scratch;
        size_t count = ids.size();
        next.assign(count, {});
        for (size_t i = 0; i + 1 < count; i++) next[i] = find(ids[i], ids[i + 1]);
        while (count > 1) {
            size_t best = 0;
            for (size_t i = 1; i + 1 < count; i++)
                if (next[i].rank < next[best].rank) best = i;
            if (next[best].rank == kNone) break;
            ids[best] = next[best].result;
            sizes[best] += sizes[best + 1];
            ids.erase(ids.begin() + ptrdiff_t(best) + 1);
            sizes.erase(sizes.begin() + ptrdiff_t(best) + 1);
            next.erase(next.begin() + ptrdiff_t(best));
            count--;
            next[best] = best + 1 < count ? find(ids[best], ids[best + 1]) : Merge{};
            if (best > 0) next[best - 1] = find(ids[best - 1], ids[best]);
        }
    }

    // A long one: a heap of (rank, position) over a doubly linked list; entries of pairs that are gone are skipped.
    void merge_long(Scratch& scratch) const {
        auto& [ids, sizes, preceding, following, next] = scratch;
        const auto count = uint32_t(ids.size());
        struct Entry {
            uint32_t rank, result, left;
            bool operator<(const Entry& other) const {  // std::priority_queue gives the greatest first
                return rank != other.rank ? rank > other.rank : left > other.left;
            }
        };
        preceding.resize(count);
        following.resize(count);
        std::vector<Entry> entries;
        for (uint32_t i = 0; i < count; i++) {
            preceding[i] = i - 1;  // of the first one: kNone
            following[i] = i + 1 < count ? i + 1 : kNone;
            const Merge merge = i + 1 < count ? find(ids[i], ids[i + 1]) : Merge{};
            if (merge.rank != kNone) entries.push_back({merge.rank, merge.result, i});
        }
        std::priority_queue<Entry> heap(std::less<Entry>(), std::move(entries));
        while (!heap.empty()) {
            const Entry entry = heap.top();
            heap.pop();
            const uint32_t left = entry.left, right = following[left];
            if (!sizes[left] || right == kNone) continue;
            const Merge now = find(ids[left], ids[right]);
            if (now.rank != entry.rank || now.result != entry.result) continue;
            ids[left] = entry.result;
            sizes[left] += sizes[right];
            sizes[right] = 0;
            const uint32_t after = following[left] = following[right], before = preceding[left];
            if (after != kNone) {
                preceding[after] = left;
                if (const Merge merge = find(ids[left], ids[after]); merge.rank != kNone)
                    heap.push({merge.rank, merge.result, left});
            }
            if (before != kNone)
                if (const Merge merge = find(ids[before], ids[left]); merge.rank != kNone)
                    heap.push({merge.rank, merge.result, before});
        }
    }

    uint32_t pieces_;
    std::unordered_map<uint32_t, uint32_t> characters_;  // the bytes of a character, packed → symbol
    uint32_t bytes_[256] = {};
    std::vector<Slot> slots_;
};

}  // namespace tinylm::sentencepiece
