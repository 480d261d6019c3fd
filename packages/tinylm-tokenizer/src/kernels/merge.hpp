// Byte-pair merging of one piece. No Python here. The readable version is byte_bpe.py: encode_piece.
//
// Which pairs may be merged is a question to `Rules`: PairRules below for a list of merges, RankRules (byte_bpe.hpp) for
// a vocabulary in which any two neighbours merge whose bytes together are a token.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <queue>
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

// A list of merges: what a pair gives depends on the ids of its halves.
class PairRules {
  public:
    explicit PairRules(size_t merges) : table_(merges) {}

    void add(uint32_t left, uint32_t right, Merge merge) { table_.add(left, right, merge); }

    Merge find(const uint8_t*, size_t, uint32_t left, uint32_t right) const { return table_.find(left, right); }

  private:
    MergeTable table_;
};

constexpr size_t kLinear = 240;           // bytes up to which looking at all pairs for the lowest is quicker than a heap
constexpr size_t kEndless = 1 << 13;      // bytes from which on merge_endless is quicker than one heap
constexpr uint32_t kLinearRanks = 1 << 22;  // ranks that fit beside a position in 31 bits

// A piece of 1 to kLinear bytes whose ranks are below kLinearRanks → its ids; returns how many. A part is known by the
// position of its first byte. The lowest rank (the leftmost of equals) is the smallest number in `lowest`, which no
// merge moves: what is gone is only made large. 16 bytes behind the piece must be readable.
template <class Rules>
size_t merge_short(const Rules& rules, const uint32_t* byte_ids, const uint8_t* piece, size_t size, uint32_t* ids) {
    constexpr int32_t gone = INT32_MAX;
    constexpr size_t step = 8;
    int32_t lowest[kLinear + step];     // rank << 8 | position, of the pair of this part and the next one
    uint32_t result[kLinear], id[kLinear];
    uint8_t following[kLinear], preceding[kLinear];
    for (size_t i = 0; i < size; i++) id[i] = byte_ids[piece[i]];
    auto look = [&](size_t left, size_t right, size_t end) {
        const Merge merge = rules.find(piece + left, end - left, id[left], id[right]);
        lowest[left] = merge.rank == kNone ? gone : int32_t(merge.rank << 8 | left);
        result[left] = merge.result;
    };
    for (size_t i = 0; i + 1 < size; i++) look(i, i + 1, i + 2);
    for (size_t i = 0; i < size; i++) following[i] = uint8_t(i + 1), preceding[i] = uint8_t(i - 1);
    const size_t padded = (size + step - 1) / step * step;
    for (size_t i = size - 1; i < padded; i++) lowest[i] = gone;
    for (;;) {
        int32_t least[step];
        std::copy(lowest, lowest + step, least);
        for (size_t i = step; i < padded; i += step)
            for (size_t j = 0; j < step; j++) least[j] = std::min(least[j], lowest[i + j]);
        const int32_t best = *std::min_element(least, least + step);
        if (best == gone) break;
        const size_t left = size_t(best & 0xFF), right = following[left], after = following[right];
        id[left] = result[left];
        lowest[right] = gone;
        following[left] = uint8_t(after);
        if (after < size) {
            preceding[after] = uint8_t(left);
            look(left, after, following[after]);
        } else {
            lowest[left] = gone;
        }
        if (left > 0) look(preceding[left], left, after);
    }
    size_t count = 0;
    for (size_t i = 0; i < size; i = following[i]) ids[count++] = id[i];
    return count;
}

// The same for a piece of any length, through a heap of (rank, position): n log n whatever the piece holds. An entry
// whose pair has changed since it was pushed is skipped when it comes up.
template <class Rules>
size_t merge_long(const Rules& rules, const uint32_t* byte_ids, const uint8_t* piece, size_t size, uint32_t* ids) {
    struct Part {
        uint32_t id, rank, result, following, preceding;
    };
    std::vector<Part> parts(size);
    std::vector<uint64_t> heap;
    auto look = [&](size_t left, size_t right, size_t end) {
        const Merge merge = rules.find(piece + left, end - left, parts[left].id, parts[right].id);
        parts[left].rank = merge.rank;
        parts[left].result = merge.result;
        if (merge.rank != kNone) heap.push_back(uint64_t(merge.rank) << 32 | left);
        return merge.rank != kNone;
    };
    for (size_t i = 0; i < size; i++) parts[i] = {byte_ids[piece[i]], kNone, kNone, uint32_t(i + 1), uint32_t(i - 1)};
    for (size_t i = 0; i + 1 < size; i++) look(i, i + 1, i + 2);
    std::make_heap(heap.begin(), heap.end(), std::greater<>());
    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), std::greater<>());
        const uint32_t rank = uint32_t(heap.back() >> 32), left = uint32_t(heap.back());
        heap.pop_back();
        if (parts[left].rank != rank) continue;
        const uint32_t right = parts[left].following, after = parts[right].following;
        parts[left].id = parts[left].result;
        parts[left].rank = parts[right].rank = kNone;
        parts[left].following = after;
        if (after < size) {
            parts[after].preceding = left;
            if (look(left, after, parts[after].following)) std::push_heap(heap.begin(), heap.end(), std::greater<>());
        }
        if (left > 0 && look(parts[left].preceding, left, after))
            std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
    size_t count = 0;
    for (size_t i = 0; i < size; i = parts[i].following) ids[count++] = parts[i].id;
    return count;
}

// The positions of all pairs of one rank, from left to right. Those that come while it is being emptied go to a heap.
class RankBucket {
  public:
    bool waiting = false;  // in the queue of ranks

    void add(uint32_t position) {
        if (begun_) {
            late_.push_back(position);
            std::push_heap(late_.begin(), late_.end(), std::greater<>());
        } else {
            positions_.push_back(position);
        }
    }

    bool empty() const { return next_ == positions_.size() && late_.empty(); }

    uint32_t take() {
        if (!begun_) {
            if (!std::is_sorted(positions_.begin(), positions_.end())) std::sort(positions_.begin(), positions_.end());
            begun_ = true;
        }
        uint32_t position;
        if (next_ < positions_.size() && (late_.empty() || positions_[next_] < late_.front())) {
            position = positions_[next_++];
        } else {
            std::pop_heap(late_.begin(), late_.end(), std::greater<>());
            position = late_.back();
            late_.pop_back();
        }
        if (empty()) {  // the next ones are sorted again
            positions_.clear();
            next_ = 0;
            begun_ = false;
        }
        return position;
    }

  private:
    std::vector<uint32_t> positions_, late_;
    size_t next_ = 0;
    bool begun_ = false;
};

// The same for an endless piece: a bucket per rank instead of one heap, so that memory is walked from left to right.
// ranks: a number above every rank.
template <class Rules>
size_t merge_endless(const Rules& rules, const uint32_t* byte_ids, const uint8_t* piece, size_t size, size_t ranks,
                     uint32_t* ids) {
    struct Part {
        uint32_t id, rank, result, following, preceding;
    };
    std::vector<Part> parts(size);
    std::vector<uint32_t> bucket_of(ranks, kNone);
    std::deque<RankBucket> buckets;
    std::priority_queue<uint32_t, std::vector<uint32_t>, std::greater<>> queue;  // ranks whose buckets are not empty
    uint32_t lowest = kNone;                                                     // of the pairs found since the last pop
    auto look = [&](size_t left, size_t right, size_t end) {
        const Merge merge = rules.find(piece + left, end - left, parts[left].id, parts[right].id);
        parts[left].rank = merge.rank;
        parts[left].result = merge.result;
        if (merge.rank == kNone) return;
        if (bucket_of[merge.rank] == kNone) {
            bucket_of[merge.rank] = uint32_t(buckets.size());
            buckets.emplace_back();
        }
        RankBucket& bucket = buckets[bucket_of[merge.rank]];
        bucket.add(uint32_t(left));
        if (!bucket.waiting) queue.push(merge.rank);
        bucket.waiting = true;
        lowest = std::min(lowest, merge.rank);
    };
    for (size_t i = 0; i < size; i++) parts[i] = {byte_ids[piece[i]], kNone, kNone, uint32_t(i + 1), uint32_t(i - 1)};
    for (size_t i = 0; i + 1 < size; i++) look(i, i + 1, i + 2);
    while (!queue.empty()) {
        const uint32_t rank = queue.top();
        RankBucket& bucket = buckets[bucket_of[rank]];
        lowest = kNone;
        while (!bucket.empty() && lowest >= rank) {
            const uint32_t left = bucket.take();
            if (parts[left].rank != rank) continue;
            const uint32_t right = parts[left].following, after = parts[right].following;
            parts[left].id = parts[left].result;
            parts[left].rank = parts[right].rank = kNone;
            parts[left].following = after;
            if (after < size) {
                parts[after].preceding = left;
                look(left, after, parts[after].following);
            }
            if (left > 0) look(parts[left].preceding, left, after);
        }
        if (bucket.empty() && queue.top() == rank) {
            queue.pop();
            bucket.waiting = false;
        }
    }
    size_t count = 0;
    for (size_t i = 0; i < size; i = parts[i].following) ids[count++] = parts[i].id;
    return count;
}

}  // namespace tinylm
