// Byte-pair merging of one piece. No Python here. The readable version is byte_bpe.py: encode_piece.
//
// Which pairs may be merged is a question to `Rules`: PairRules below for a list of merges, RankRules (byte_bpe_ranks.hpp) for
// a vocabulary in which any two neighbours merge whose bytes together are a token.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "hash.hpp"

namespace tinylm {

constexpr uint32_t kNone = 0xFFFFFFFF;

inline uint64_t pair_key(uint32_t left, uint32_t right) { return uint64_t(left) << 32 | right; }

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
constexpr size_t kBack = 16;              // bytes that two windows of a long piece share
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

// A piece of any length, one window at a time. Two things are true of every result of merging, whatever the rules, because
// a merge depends on nothing but its two neighbours, and the order of merges in a stretch on nothing outside of it:
//   - a run of its ids is what merging their own bytes alone gives;
//   - two results, the one ending and the other beginning with the same id of the same bytes, are one result if joined.
// (github/rust-gems, crates/bpe, README: corollaries II and III.) So a result for the beginning of the piece grows by a
// window that begins with one of its last ids: if merging the window gives that id again, the two are joined there; if
// not, what comes has changed what was before, and the window begins further back, twice as far each time. A window
// grows by three times as much as it goes back, so that time is linear unless merges depend on bytes far away, and
// n log n whatever they do. A window that repeats the one before it (one letter, blanks) is not merged again.
//
// merge(bytes, size, ids) → how many; sizes: the bytes of each id.
template <class MergeOne>
size_t merge_windows(MergeOne&& merge, const uint32_t* sizes, const uint8_t* piece, size_t size, uint32_t* ids) {
    std::vector<uint32_t> fresh;
    size_t done = 0, count = 0;  // ids[0..count) is the result for piece[0..done)
    size_t last_first = 0, last_start = 0, last_length = 0;  // the window before: ids from last_first on
    for (size_t back = kBack; done < size;) {
        size_t first = count, start = done;
        while (first > 0 && done - start < back) start -= sizes[ids[--first]];
        const size_t length = std::min(done + 3 * std::max(back, done - start), size) - start;
        size_t made = count - last_first;
        if (length == last_length && !std::memcmp(piece + start, piece + last_start, length)) {
            fresh.assign(ids + last_first, ids + count);
        } else {
            fresh.resize(std::max(fresh.size(), length));
            made = merge(piece + start, length, fresh.data());
        }
        if (first > 0 && fresh[0] != ids[first]) {
            back *= 2;
            continue;
        }
        std::copy_n(fresh.data(), made, ids + first);
        last_first = first, last_start = start, last_length = length;
        count = first + made;
        done = start + length;
        back = std::max(kBack, back / 2);
    }
    return count;
}

}  // namespace tinylm
