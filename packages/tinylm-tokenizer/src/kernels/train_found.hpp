// What merging a batch of pairs changes: found by each thread in its own words, divided by the shares of the pairs, so
// that each thread brings its own share up to date with what all have found. No Python here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "train_pairs.hpp"

namespace tinylm {

struct Merging {  // a pair that is being merged
    uint32_t left, right, new_id;
    Places where;
};

struct Made {  // a new pair
    uint64_t key;
    int64_t count;              // once all threads are put together: where it stands among the sums
    uint32_t* where = nullptr;  // where its next place has to be written; null: nowhere
    uint32_t places = 0;        // how many it has; once all threads are put together: how many come before
};

struct Gone {  // a pair that was taken apart
    uint64_t key;
    int64_t count;
};

// By id, beside a pair that is being merged: where in a list the new pair stands that this neighbour makes. Nothing is
// ever cleared: the key there tells whether it is meant.
class Known {
  public:
    explicit Known(size_t ids) : ids_(ids), at_(2 * ids) {}

    uint32_t& left(uint32_t id) { return at_[id]; }
    uint32_t& right(uint32_t id) { return at_[ids_ + id]; }

    static Made& note(std::vector<Made>& list, uint32_t& at, uint64_t key, int64_t count, uint32_t places) {
        if (at >= list.size() || list[at].key != key) {
            at = uint32_t(list.size());
            list.push_back({key, 0});
        }
        Made& made = list[at];
        made.count += count;
        made.places += places;
        return made;
    }

  private:
    size_t ids_;
    std::vector<uint32_t> at_;
};

struct alignas(128) FoundShare {  // no cache line of one thread is written by another at the same time
    std::vector<Made> made;
    std::vector<size_t> ends;  // in `made`, of each merge
    std::vector<Gone> gone;

    struct Event {
        uint32_t made;
        uint32_t place;
    };
    std::vector<Event> events;  // in the order of the cells

    // Write the places of the new pairs into their lists, and forget everything.
    void settle() {
        for (const auto& [number, place] : events)
            if (uint32_t*& where = made[number].where) *where++ = place;
        made.clear();
        ends.clear();
        gone.clear();
        events.clear();
    }
};

class alignas(128) Found {
  public:
    Found(size_t ids, size_t shares) : shares(shares), known_(ids) {}

    std::vector<FoundShare> shares;

    void left(const Merging& merging, uint32_t id, int64_t count, uint32_t place) {
        if (id == merging.new_id) undone_ += count;
        note(pair_key(id, merging.new_id), known_.left(id), count, place);
    }

    void right(const Merging& merging, uint32_t id, int64_t count, uint32_t place) {
        note(pair_key(merging.new_id, id), known_.right(id), count, place);
    }

    // All places of a merge are done: what was taken apart there.
    void end_merge(const Merging& merging) {
        const auto [a, b, new_id, _] = merging;
        for (size_t number = 0; number < shares.size(); number++) {
            FoundShare& share = shares[number];
            for (size_t at = share.ends.empty() ? 0 : share.ends.back(); at < share.made.size(); at++) {
                Made& made = share.made[at];
                const uint32_t left = uint32_t(made.key >> 32), right = uint32_t(made.key);
                if (right == new_id) {
                    if (left != new_id) gone(pair_key(left, a), made.count);
                } else {
                    if (a != b || right != a) gone(pair_key(b, right), made.count);
                    if (right == a) made.count -= undone_;  // made at one place, and gone with the next one
                }
            }
            share.ends.push_back(share.made.size());
        }
        undone_ = 0;
    }

    void settle() {
        for (FoundShare& share : shares) share.settle();
    }

  private:
    void note(uint64_t key, uint32_t& at, int64_t count, uint32_t place) {
        FoundShare& share = shares[Pairs::share_of(key, shares.size())];
        Known::note(share.made, at, key, count, 1);
        share.events.push_back({at, place});
    }

    void gone(uint64_t key, int64_t count) {
        shares[Pairs::share_of(key, shares.size())].gone.push_back({key, count});
    }

    Known known_;
    int64_t undone_ = 0;  // of the merge at hand
};

}  // namespace tinylm
