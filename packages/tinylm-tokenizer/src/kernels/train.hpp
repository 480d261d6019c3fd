// Learning the merges. No Python here. The readable version is byte_bpe.py: train_merges; byte_bpe_fast.py says why only
// the words that hold the merged pair need to be looked at again. What this file does beyond that:
//   - All words lie in one array of 32-bit cells. A token of n bytes takes n cells; its id stands in the first and in the
//     last, so that both neighbours of a token are found at once and no word is ever moved.
//   - A pair knows where it occurs. New occurrences of (l, r) arise only while the younger of the two is being made, so
//     each list of places is written once, in ascending order, and a count can only fall afterwards.
//   - For the same reason the counts of the best pairs never rise: a pair below a threshold is not kept at all. When the
//     heap runs dry the threshold goes down and the pairs are counted anew.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <queue>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

#include "count.hpp"
#include "merge.hpp"

namespace tinylm {

using Pair = std::pair<uint32_t, uint32_t>;

// Pair → how often and where. Open addressing; a pair that fell below the threshold stays until the table grows.
class PairTable {
  public:
    struct Slot {
        uint64_t key = kFree;
        int64_t count = 0;
        std::unique_ptr<uint32_t[]> where;  // cells at which the pair starts, ascending; some may be out of date
        uint32_t places = 0;                // how many there are in `where`
    };

    void clear() {
        slots_.clear();
        slots_.resize(1024);
        used_ = 0;
    }

    Slot* find(uint64_t key) {
        Slot& slot = slots_[slot_of(key)];
        return slot.key == key ? &slot : nullptr;
    }

    void prefetch_slot(uint64_t key) const { prefetch(&slots_[mix(key) & (slots_.size() - 1)]); }

    // The slot of a pair, made if it is missing. Pairs below `least` are dropped when the table has to grow.
    Slot& insert(uint64_t key, int64_t least) {
        if (used_ * 3 >= slots_.size() * 2) grow(least);
        Slot& slot = slots_[slot_of(key)];
        if (slot.key != key) {
            slot.key = key;
            used_++;
        }
        return slot;
    }

    std::vector<Slot>& slots() { return slots_; }
    static constexpr uint64_t kFree = ~uint64_t(0);

  private:
    size_t slot_of(uint64_t key) const {
        size_t slot = mix(key) & (slots_.size() - 1);
        while (slots_[slot].key != key && slots_[slot].key != kFree) slot = (slot + 1) & (slots_.size() - 1);
        return slot;
    }

    void grow(int64_t least) {
        size_t kept = 0;
        for (const Slot& slot : slots_) kept += slot.key != kFree && slot.count >= least;
        std::vector<Slot> old(slots_.size() * (kept * 3 >= slots_.size() ? 2 : 1));
        old.swap(slots_);
        for (Slot& slot : old)
            if (slot.key != kFree && slot.count >= least) slots_[slot_of(slot.key)] = std::move(slot);
        used_ = kept;
    }

    std::vector<Slot> slots_ = std::vector<Slot>(1024);
    size_t used_ = 0;
};

class Trainer {
  public:
    using Pulse = std::function<void()>;  // called now and then in long loops; may throw to end them

    // for_each(f): calls f(piece, count) for each distinct piece, always in the same order.
    template <class ForEach>
    Trainer(ForEach&& for_each, const std::vector<uint32_t>& byte_ids, size_t wanted, Pulse pulse)
        : wanted_(wanted), pulse_(std::move(pulse)), length_(256 + wanted, 1), left_(256 + wanted), right_(256 + wanted) {
        size_t cells = 2;
        int64_t pairs = 0;
        for_each([&](std::string_view piece, int64_t count) {
            if (piece.size() < 2) return;
            cells += piece.size() + 2;
            pairs += count * int64_t(piece.size() - 1);
        });
        if (cells > kMostCells) throw std::length_error("the distinct pieces of the corpus are more than 2 GB of text");
        cells_.reserve(cells);
        for (bool is_long : {false, true}) {  // long words last: a place in them finds its word by a search
            for_each([&](std::string_view piece, int64_t count) {
                if (piece.size() < 2 || (piece.size() > kLong) != is_long) return;
                cells_.push_back(kHeader | uint32_t(count >> 31));
                cells_.push_back(kHeader | (uint32_t(count) & ~kHeader));
                if (is_long) long_starts_.push_back(cells_.size());
                uint32_t distance = 0;
                for (unsigned char byte : piece) {
                    cells_.push_back(distance | byte_ids[byte]);
                    if (!is_long) distance += kDistance;
                }
            });
        }
        cells_.push_back(kHeader);
        threshold_ = std::max<int64_t>(1, pairs / int64_t(kPairsPerMerge * std::max<size_t>(wanted, 1)));
    }

    Trainer(Trainer&&) = default;

    // Learn up to `most` further merges; fewer when no pair is left.
    std::vector<Pair> step(size_t most) {
        std::vector<Pair> merges;
        while (merges.size() < most && learned_ < wanted_) {
            if (heap_.empty()) {
                if (collected_ && threshold_ == 1) break;
                if (collected_) threshold_ = std::max<int64_t>(1, threshold_ / 8);
                collect();
                continue;
            }
            const Entry best = heap_.top();
            heap_.pop();
            PairTable::Slot* found = pairs_.find(best.key);
            const int64_t count = found ? found->count : 0;
            if (count != best.count) {  // an old entry: the count went down since it was pushed
                if (count >= threshold_) heap_.push({count, best.key});
                continue;
            }
            const Pair pair{uint32_t(best.key >> 32), uint32_t(best.key)};
            const std::unique_ptr<uint32_t[]> where = std::move(found->where);
            found->count = 0;
            merge(pair, uint32_t(256 + learned_++), where.get(), found->places);
            merges.push_back(pair);
        }
        return merges;
    }

  private:
    // A cell: 24 bits of id, and 7 bits that say how far it is from the start of its word (in long words: 0).
    static constexpr uint32_t kId = (1u << 24) - 1;
    static constexpr uint32_t kDistance = 1u << 24;
    static constexpr uint32_t kHeader = 1u << 31;  // set in the two cells before a word, which hold its count
    static constexpr uint32_t kInside = kId;       // where a right half started; no id
    static constexpr size_t kMostCells = size_t(1) << 32;
    static constexpr size_t kLong = 128;  // bytes: what 7 bits can tell
    static constexpr size_t kPairsPerMerge = 64;  // pairs in a corpus for each merge and each occurrence of the last one

    struct Entry {
        int64_t count;
        uint64_t key;
        bool operator<(const Entry& other) const {  // greatest first: highest count, then the smallest pair
            return count != other.count ? count < other.count : key > other.key;
        }
    };
    struct Neighbour {  // what stands beside the merged pair: how often, at how many places
        int64_t count = 0;
        uint32_t* where = nullptr;
        uint32_t places = 0;
    };
    struct Event {
        uint32_t id;
        uint32_t place;
    };

    int64_t count_at(uint32_t place) const {
        size_t start = place;
        if (!long_starts_.empty() && place >= long_starts_.front())
            start = *--std::upper_bound(long_starts_.begin(), long_starts_.end(), place);
        else
            start -= cells_[place] / kDistance;
        return count_before(start);
    }

    int64_t count_before(size_t start) const {
        return int64_t(cells_[start - 2] & ~kHeader) << 31 | (cells_[start - 1] & ~kHeader);
    }

    // Calls f(pair's key, cell of the left half, count) for each pair of neighbours, in the order of the cells.
    template <class F>
    void each_pair(F&& f) const {
        size_t next_pulse = 0;
        for (size_t start = 0; start + 1 < cells_.size();) {
            if (start >= next_pulse) {
                pulse_();
                next_pulse = start + (1 << 21);
            }
            size_t left = start += 2;
            const int64_t count = count_before(start);
            while (true) {
                const size_t right = left + length_[cells_[left] & kId];
                start = right;
                if (cells_[right] & kHeader) break;
                f(pair_key(cells_[left] & kId, cells_[right] & kId), uint32_t(left), count);
                left = right;
            }
        }
    }

    // Count all pairs and keep those that reach the threshold, with their places. A part at a time, so that the pairs
    // that are not kept need little memory.
    void collect() {
        collected_ = true;
        pairs_.clear();
        const size_t parts = 1 + cells_.size() / (1 << 21);
        PairTable all;
        for (size_t part = 0; part < parts; part++) {
            all.clear();
            each_pair([&](uint64_t key, uint32_t, int64_t count) {
                if (parts > 1 && (mix(key) >> 32) % parts != part) return;
                PairTable::Slot& slot = all.insert(key, 0);
                slot.count += count;
                slot.places++;
            });
            for (PairTable::Slot& slot : all.slots()) {
                if (slot.key == PairTable::kFree || slot.count < threshold_) continue;
                PairTable::Slot& kept = pairs_.insert(slot.key, threshold_);
                kept.count = slot.count;
                kept.where.reset(new uint32_t[slot.places]);
                heap_.push({slot.count, slot.key});
            }
        }
        each_pair([&](uint64_t key, uint32_t left, int64_t) {
            if (PairTable::Slot* slot = pairs_.find(key)) slot->where[slot->places++] = left;
        });
    }

    void merge(Pair pair, uint32_t new_id, const uint32_t* where, uint32_t places) {
        const auto [a, b] = pair;
        const uint32_t size_a = length_[a], size_b = length_[b];
        length_[new_id] = size_a + size_b;
        int64_t undone = 0;  // (new id, a): counted at one merge, gone with the next one
        for (uint32_t i = 0; i < places; i++) {
            if (i + kAhead < places) prefetch(&cells_[where[i + kAhead]]);
            if ((i & 0xfffff) == 0xfffff) pulse_();
            const uint32_t start = where[i], middle = start + size_a, end = middle + size_b;
            if ((cells_[start] & kId) != a || (cells_[middle] & (kId | kHeader)) != b) continue;  // merged away since
            const int64_t count = count_at(start);
            const uint32_t before = cells_[start - 1], after = cells_[end];
            if (!(before & kHeader)) {
                const uint32_t id = before & kId;
                if (id == new_id) undone += count;
                note(left_, lefts_, left_events_, id, start - length_[id], count);
            }
            if (!(after & kHeader)) note(right_, rights_, right_events_, after & kId, start, count);
            cells_[middle] |= kInside;
            cells_[start] = (cells_[start] & ~kId) | new_id;
            cells_[end - 1] = (cells_[end - 1] & ~kId) | new_id;
        }
        for (size_t i = 0; i < lefts_.size(); i++) {
            if (i + 4 < lefts_.size()) pairs_.prefetch_slot(pair_key(lefts_[i + 4], a));
            const uint32_t id = lefts_[i];
            if (id != new_id) lower(pair_key(id, a), left_[id].count);
            keep(pair_key(id, new_id), left_[id], left_[id].count);
        }
        for (size_t i = 0; i < rights_.size(); i++) {
            if (i + 4 < rights_.size()) pairs_.prefetch_slot(pair_key(b, rights_[i + 4]));
            const uint32_t id = rights_[i];
            if (id != a || a != b) lower(pair_key(b, id), right_[id].count);
            keep(pair_key(new_id, id), right_[id], right_[id].count - (id == a ? undone : 0));
        }
        settle(left_, lefts_, left_events_);
        settle(right_, rights_, right_events_);
    }

    static void note(std::vector<Neighbour>& known, std::vector<uint32_t>& touched, std::vector<Event>& events,
                     uint32_t id, uint32_t place, int64_t count) {
        Neighbour& neighbour = known[id];
        if (neighbour.places++ == 0) touched.push_back(id);
        neighbour.count += count;
        events.push_back({id, place});
    }

    void lower(uint64_t key, int64_t by) {
        PairTable::Slot* slot = pairs_.find(key);
        if (!slot) return;
        slot->count -= by;
        if (slot->count < threshold_) slot->where.reset();
    }

    void keep(uint64_t key, Neighbour& neighbour, int64_t count) {
        if (count < threshold_) return;
        PairTable::Slot& slot = pairs_.insert(key, threshold_);
        slot.count = count;
        slot.places = neighbour.places;
        slot.where.reset(new uint32_t[neighbour.places]);
        neighbour.where = slot.where.get();
        heap_.push({count, key});
    }

    // Write the places of the new pairs into their lists, and forget the neighbours.
    static void settle(std::vector<Neighbour>& known, std::vector<uint32_t>& touched, std::vector<Event>& events) {
        for (const Event& event : events)
            if (uint32_t*& where = known[event.id].where) *where++ = event.place;
        for (uint32_t id : touched) known[id] = {};
        touched.clear();
        events.clear();
    }

    static constexpr uint32_t kAhead = 16;  // places fetched into the cache before they are needed

    size_t wanted_, learned_ = 0;
    Pulse pulse_;
    int64_t threshold_ = 1;
    bool collected_ = false;
    std::vector<uint32_t> cells_;
    std::vector<size_t> long_starts_;
    std::vector<uint32_t> length_;  // of each id, in bytes
    PairTable pairs_;
    std::priority_queue<Entry> heap_;
    std::vector<Neighbour> left_, right_;  // by id, all empty between two merges
    std::vector<uint32_t> lefts_, rights_;
    std::vector<Event> left_events_, right_events_;
};

}  // namespace tinylm
