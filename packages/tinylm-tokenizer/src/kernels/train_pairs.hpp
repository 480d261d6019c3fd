// The pairs that may be merged next: each with its count and its places, the best one first. With several threads each
// owns the pairs of one share, so that none waits for another. No Python here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <queue>
#include <utility>
#include <vector>

#include "train_pool.hpp"
#include "train_table.hpp"

namespace tinylm {

using Pair = std::pair<uint32_t, uint32_t>;

struct Places {  // of left halves, ascending; some may be out of date
    uint32_t* start = nullptr;
    uint32_t size = 0;
};

struct Candidate {
    int64_t count;
    uint64_t key;
    bool operator<(const Candidate& other) const {  // greatest first: highest count, then the smallest pair
        return count != other.count ? count < other.count : key > other.key;
    }
};

class Pairs {
  public:
    // Which of `shares` a pair belongs to.
    static size_t share_of(uint64_t key, size_t shares) {
        return uint64_t(uint32_t((key >> 32) + key) * 0x9E3779B1u) * shares >> 32;
    }

    // Once counts are up to date: make the `number` best pairs ready for `best`, as a thread that others do not wait for.
    void prepare(size_t number, int64_t threshold) {
        for (; number > 0 && settle_top(threshold); number--) {
            ready_.push_back(heap_.top());
            heap_.pop();
        }
        std::reverse(ready_.begin(), ready_.end());
        settle_top(threshold);
    }

    // The best pair, null if there is none.
    const Candidate* best(int64_t threshold) {
        if (!ready_.empty()) return &ready_.back();
        return settle_top(threshold) ? &heap_.top() : nullptr;
    }

    // Take the best pair out. Its places are there until the next `begin_update`.
    Places take_best() {
        Occurrences* found = pairs_.find(ready_.empty() ? heap_.top().key : ready_.back().key);
        if (ready_.empty())
            heap_.pop();
        else
            ready_.pop_back();
        found->count = 0;
        dropped_.push_back(found->where);
        return std::exchange(found->where, {});
    }

    // Counts will change, and lists of pairs that were taken or fell below the threshold are no longer read or written.
    void begin_update() {
        for (const Candidate& candidate : ready_) heap_.push(candidate);
        ready_.clear();
        for (const Places& places : dropped_) pool_.give_back(places.start, places.size);
        dropped_.clear();
    }

    // Keep a new pair; gives the list into which its places have to be written.
    uint32_t* keep(uint64_t key, int64_t count, uint32_t places, int64_t threshold) {
        Occurrences& pair = pairs_.insert(key, [&](const Occurrences& old) { return old.count < threshold; });
        pair = {count, {pool_.take(places), places}};
        heap_.push({count, key});
        return pair.where.start;
    }

    void lower(uint64_t key, int64_t by, int64_t threshold) {
        Occurrences* pair = pairs_.find(key);
        if (!pair) return;
        pair->count -= by;
        if (pair->count < threshold && pair->where.start) dropped_.push_back(std::exchange(pair->where, {}));
    }

    void prefetch(uint64_t key) const { pairs_.prefetch_slot(key); }

    void clear() {  // when no pair is left
        begin_update();
        pairs_.clear();
    }

  private:
    struct Occurrences {
        int64_t count = 0;
        Places where;
    };

    // Drops what is out of date from the top of the heap: counts fall after a pair was put in. False: nothing is left.
    bool settle_top(int64_t threshold) {
        while (!heap_.empty()) {
            const Candidate top = heap_.top();
            const Occurrences* found = pairs_.find(top.key);
            const int64_t count = found ? found->count : 0;
            if (count == top.count) return true;
            heap_.pop();
            if (count >= threshold) heap_.push({count, top.key});
        }
        return false;
    }

    PairTable<Occurrences> pairs_;
    std::priority_queue<Candidate> heap_;
    std::vector<Candidate> ready_;  // better than all of the heap, the best one last
    std::vector<Places> dropped_;
    ListPool pool_;
};

}  // namespace tinylm
