// Byte-pair merging of one piece. No Python here. The readable version is byte_bpe.py: encode_piece.
#pragma once

#include <cstdint>
#include <cstring>
#include <queue>
#include <string_view>
#include <vector>

namespace tinylm {

constexpr uint32_t kNone = 0xFFFFFFFF;

inline uint64_t pair_key(uint32_t left, uint32_t right) { return uint64_t(left) << 32 | right; }

inline uint64_t mix(uint64_t key) {  // the finaliser of splitmix64: every bit of the key moves every bit of the hash
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9;
    key = (key ^ key >> 27) * 0x94D049BB133111EB;
    return key ^ key >> 31;
}

struct Merge {
    uint32_t rank = kNone;
    uint32_t result = kNone;
};

// (left id, right id) → (rank, result): open addressing with linear probing, at most half full, never changed once made.
class MergeTable {
  public:
    explicit MergeTable(size_t merges) {
        size_t slots = 16;
        while (slots < 2 * merges) slots *= 2;
        slots_.resize(slots);
    }

    void add(uint32_t left, uint32_t right, Merge merge) {  // the first of two equal pairs stands
        Slot& slot = slots_[slot_of(pair_key(left, right))];
        if (slot.merge.rank == kNone) slot = {pair_key(left, right), merge};
    }

    Merge find(uint32_t left, uint32_t right) const { return slots_[slot_of(pair_key(left, right))].merge; }

  private:
    struct Slot {
        uint64_t key = 0;
        Merge merge;  // rank kNone: the slot is empty
    };

    size_t slot_of(uint64_t key) const {
        size_t slot = mix(key) & (slots_.size() - 1);
        while (slots_[slot].merge.rank != kNone && slots_[slot].key != key) slot = (slot + 1) & (slots_.size() - 1);
        return slot;
    }

    std::vector<Slot> slots_;
};

// Piece → id for the pieces that are one token: what most pieces of real text are.
class WholePieces {
  public:
    void reserve(size_t pieces) {
        size_t slots = 16;
        while (slots < 2 * pieces) slots *= 2;
        slots_.assign(slots, {});
    }

    void add(std::string_view piece, uint32_t id) { slots_[slot_of(piece)] = {piece, id}; }

    uint32_t find(std::string_view piece) const {
        if (slots_.empty()) return kNone;
        return slots_[slot_of(piece)].id;
    }

  private:
    struct Slot {
        std::string_view piece;
        uint32_t id = kNone;
    };

    static uint64_t hash(std::string_view piece) {
        uint64_t hash = piece.size(), word = 0;
        while (piece.size() >= 8) {
            std::memcpy(&word, piece.data(), 8);
            hash = mix(hash ^ word);
            piece.remove_prefix(8);
        }
        word = 0;
        if (!piece.empty()) std::memcpy(&word, piece.data(), piece.size());
        return mix(hash ^ word);
    }

    size_t slot_of(std::string_view piece) const {
        size_t slot = hash(piece) & (slots_.size() - 1);
        while (slots_[slot].id != kNone && slots_[slot].piece != piece) slot = (slot + 1) & (slots_.size() - 1);
        return slot;
    }

    std::vector<Slot> slots_;
};

// A short piece: keep the merge of each neighbouring pair beside the ids, take the lowest rank (the leftmost of equals),
// look up only the two pairs that changed. Quadratic in the length, but quicker than a heap while everything is in cache.
inline void merge_short(const MergeTable& table, std::vector<uint32_t>& ids, std::vector<Merge>& next) {
    size_t count = ids.size();
    next.assign(count, {});
    for (size_t i = 0; i + 1 < count; i++) next[i] = table.find(ids[i], ids[i + 1]);
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++)
            if (next[i].rank < next[best].rank) best = i;
        if (next[best].rank == kNone) break;
        ids[best] = next[best].result;
        std::memmove(&ids[best + 1], &ids[best + 2], (count - best - 2) * sizeof(uint32_t));
        std::memmove(&next[best], &next[best + 1], (count - best - 1) * sizeof(Merge));
        count--;
        next[best] = best + 1 < count ? table.find(ids[best], ids[best + 1]) : Merge{};
        if (best > 0) next[best - 1] = table.find(ids[best - 1], ids[best]);
    }
    ids.resize(count);
}

// A long piece: a heap of (rank, position) over a doubly linked list, n log n whatever the piece holds. A merged half
// stays in the list's arrays with the id kNone; heap entries of pairs that are gone are skipped when they come up.
inline void merge_long(const MergeTable& table, std::vector<uint32_t>& ids) {
    const size_t count = ids.size();
    std::vector<size_t> following(count), preceding(count);
    struct Entry {
        uint32_t rank;
        uint32_t result;
        size_t left;
        bool operator<(const Entry& other) const {  // std::priority_queue gives the greatest first
            return rank != other.rank ? rank > other.rank : left > other.left;
        }
    };
    std::priority_queue<Entry> heap;
    auto push = [&](size_t left, size_t right) {
        Merge merge = table.find(ids[left], ids[right]);
        if (merge.rank != kNone) heap.push({merge.rank, merge.result, left});
    };
    for (size_t i = 0; i < count; i++) {
        following[i] = i + 1;
        preceding[i] = i - 1;  // of the first one: wraps to a number ≥ count, like `following` of the last one
        if (i + 1 < count) push(i, i + 1);
    }
    while (!heap.empty()) {
        const Entry entry = heap.top();
        heap.pop();
        const size_t left = entry.left, right = following[left];
        if (ids[left] == kNone || right >= count || table.find(ids[left], ids[right]).rank != entry.rank) continue;
        ids[left] = entry.result;
        ids[right] = kNone;
        const size_t after = following[left] = following[right];
        if (after < count) {
            preceding[after] = left;
            push(left, after);
        }
        if (preceding[left] < count) push(preceding[left], left);
    }
    std::erase(ids, kNone);
}

}  // namespace tinylm
