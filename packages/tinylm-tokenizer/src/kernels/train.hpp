// Learning the merges. No Python here. The readable version is byte_bpe.py: train_merges; byte_bpe_fast.py says why only
// the words that hold the merged pair need to be looked at again. What this file does beyond that:
//   - A pair knows where it occurs. New occurrences of (l, r) arise only while the younger of the two is being made, so
//     each list of places is written once, in ascending order, and a count can only fall afterwards.
//   - For the same reason the highest count never rises: a pair below a threshold is not kept at all. When the heap runs
//     dry the threshold goes down and the pairs are counted anew.
//   - Threads share the words, not the pairs: each looks at its own part of the cells. What they find is put together in
//     the order of the cells, so that their number changes nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <queue>
#include <utility>
#include <vector>

#include "train_table.hpp"
#include "train_team.hpp"
#include "train_words.hpp"

namespace tinylm {

using Pair = std::pair<uint32_t, uint32_t>;

class Trainer {
  public:
    using Pulse = std::function<void()>;  // called now and then in long loops; may throw to end them

    Trainer(Words words, size_t wanted, size_t threads, Pulse pulse)
        : words_(std::move(words)), wanted_(wanted), pulse_(std::move(pulse)), team_(threads),
          borders_(words_.divide(team_.size())) {
        for (size_t thread = 0; thread < team_.size(); thread++) found_.emplace_back(256 + wanted);
        threshold_ = std::max<int64_t>(1, words_.pairs() / int64_t(kPairsPerMerge * std::max<size_t>(wanted, 1)));
    }

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
            Occurrences* found = pairs_.find(best.key);
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
    static constexpr size_t kPairsPerMerge = 64;     // sets the first threshold; too few: pairs are counted again
    static constexpr size_t kPart = 1 << 21;         // cells whose pairs are all counted at once
    static constexpr uint32_t kAhead = 16;           // places fetched into the cache before they are needed
    static constexpr uint32_t kWorthSharing = 256;   // places

    struct Entry {
        int64_t count;
        uint64_t key;
        bool operator<(const Entry& other) const {  // greatest first: highest count, then the smallest pair
            return count != other.count ? count < other.count : key > other.key;
        }
    };
    struct Occurrences {
        int64_t count = 0;
        std::unique_ptr<uint32_t[]> where;  // places of left halves, ascending; some may be out of date
        uint32_t places = 0;                // how many there are in `where`
    };
    struct Tally {  // of a pair, or of the neighbours of a pair that have one id
        int64_t count = 0;
        uint32_t places = 0;
        uint32_t* where = nullptr;  // where the next of these places has to be written; null: nowhere
    };
    struct Event {
        uint32_t id;
        uint32_t place;
    };
    struct Side {  // the neighbours that one thread has found on one side of the merged pair
        explicit Side(size_t ids) : known(ids) {}
        std::vector<Tally> known;  // by id, all empty between two merges
        std::vector<uint32_t> ids;
        std::vector<Event> events;

        void note(uint32_t id, uint32_t place, int64_t count) {
            if (known[id].places++ == 0) ids.push_back(id);
            known[id].count += count;
            events.push_back({id, place});
        }
    };
    struct alignas(128) Found {  // no cache line of one thread is written by another
        explicit Found(size_t ids) : left(ids), right(ids) {}
        Side left, right;
        int64_t undone = 0;  // (new id, left half): counted at one merge, gone with the next one
    };

    // Count all pairs and keep those that reach the threshold, with their places. A part of the pairs at a time, so
    // that those that are not kept need little memory.
    void collect() {
        collected_ = true;
        pairs_.clear();
        const size_t threads = team_.size();
        const size_t parts = learned_ == 0 ? 1 : 1 + words_.cells() / kPart;  // pairs of bytes are few enough
        std::vector<PairTable<Tally>> all(threads), kept(threads);
        for (size_t part = 0; part < parts; part++) {
            pulse_();
            team_.run([&](size_t thread) {
                all[thread].clear();
                words_.each_pair(borders_[thread], borders_[thread + 1], [&](uint64_t key, uint32_t, int64_t count) {
                    if (parts > 1 && (mix(key) >> 32) % parts != part) return;
                    Tally& tally = all[thread].insert(key);
                    tally.count += count;
                    tally.places++;
                });
            });
            PairTable<Tally>& sum = all[0];
            for (size_t thread = 1; thread < threads; thread++)
                all[thread].for_each([&](uint64_t key, Tally& tally) { append(sum.insert(key), tally); });
            sum.for_each([&](uint64_t key, Tally& tally) {
                if (tally.count >= threshold_) kept[0].insert(key).where = keep(key, tally.count, tally.places);
            });
            for (size_t thread = 1; thread < threads; thread++)
                all[thread].for_each([&](uint64_t key, Tally& tally) {
                    if (Tally* first = kept[0].find(key)) kept[thread].insert(key).where = first->where + tally.places;
                });
        }
        team_.run([&](size_t thread) {
            words_.each_pair(borders_[thread], borders_[thread + 1], [&](uint64_t key, uint32_t left, int64_t) {
                if (Tally* tally = kept[thread].find(key)) *tally->where++ = left;
            });
        });
    }

    // Add what a later thread has found to `sum`. Its own tally then says how many places come before its first one.
    static void append(Tally& sum, Tally& tally) {
        sum.count += tally.count;
        sum.places += std::exchange(tally.places, sum.places);
    }

    // Keep a new pair; gives the list into which its places have to be written.
    uint32_t* keep(uint64_t key, int64_t count, uint32_t places) {
        Occurrences& pair = pairs_.insert(key, [&](const Occurrences& old) { return old.count < threshold_; });
        pair.count = count;
        pair.places = places;
        pair.where.reset(new uint32_t[places]);
        heap_.push({count, key});
        return pair.where.get();
    }

    void lower(uint64_t key, int64_t by) {
        Occurrences* pair = pairs_.find(key);
        if (!pair) return;
        pair->count -= by;
        if (pair->count < threshold_) pair->where.reset();
    }

    void merge(Pair pair, uint32_t new_id, const uint32_t* where, uint32_t places) {
        const uint32_t a = pair.first, b = pair.second;  // not [a, b]: Clang before 16 does not let lambdas see those
        words_.new_token(new_id, words_.length(a) + words_.length(b));
        const bool shared = team_.size() > 1 && places >= kWorthSharing;
        if (!shared) {
            join(pair, new_id, where, where + places, found_[0], true);
        } else {
            const std::vector<const uint32_t*> borders = divide(where, places);
            team_.run([&](size_t thread) {
                join(pair, new_id, borders[thread], borders[thread + 1], found_[thread], thread == 0);
            });
            for (size_t thread = 1; thread < team_.size(); thread++) {
                append(found_[0].left, found_[thread].left);
                append(found_[0].right, found_[thread].right);
                found_[0].undone += std::exchange(found_[thread].undone, 0);
            }
        }
        const int64_t undone = std::exchange(found_[0].undone, 0);
        each_id(found_[0].left, [&](uint32_t id) { return pair_key(id, a); }, [&](uint32_t id, Tally& tally) {
            if (id != new_id) lower(pair_key(id, a), tally.count);
            if (tally.count >= threshold_) tally.where = keep(pair_key(id, new_id), tally.count, tally.places);
        });
        each_id(found_[0].right, [&](uint32_t id) { return pair_key(b, id); }, [&](uint32_t id, Tally& tally) {
            if (id != a || a != b) lower(pair_key(b, id), tally.count);
            const int64_t count = tally.count - (id == a ? undone : 0);
            if (count >= threshold_) tally.where = keep(pair_key(new_id, id), count, tally.places);
        });
        for (size_t thread = 1; thread < found_.size(); thread++) {
            place(found_[thread].left, found_[0].left);
            place(found_[thread].right, found_[0].right);
        }
        if (!shared) return settle(found_[0]);
        team_.run([&](size_t thread) { settle(found_[thread]); });
    }

    // f(id, tally) for each id of a side, whose pair with key(id) it will look for.
    template <class Key, class F>
    void each_id(Side& side, Key&& key, F&& f) {
        for (size_t i = 0; i < side.ids.size(); i++) {
            if (i + 4 < side.ids.size()) pairs_.prefetch_slot(key(side.ids[i + 4]));
            f(side.ids[i], side.known[side.ids[i]]);
        }
    }

    // Where a list of places is divided between threads: always at the same cells, so that a word stays in the cache of
    // the one thread that changes it.
    std::vector<const uint32_t*> divide(const uint32_t* where, uint32_t places) const {
        std::vector<const uint32_t*> borders{where};
        const uint32_t* end = where + places;
        for (size_t thread = 1; thread < team_.size(); thread++)
            borders.push_back(std::lower_bound(borders.back(), end, uint32_t(borders_[thread])));
        borders.push_back(end);
        return borders;
    }

    // Merge the pair at these places and note its neighbours.
    void join(Pair pair, uint32_t new_id, const uint32_t* where, const uint32_t* end, Found& found, bool pulses) {
        const auto [a, b] = pair;
        const uint32_t size_a = words_.length(a), size_b = words_.length(b);
        const uint32_t* ahead = where;
        for (uint32_t pulse = 0; where < end; where++) {
            for (; ahead < end && ahead - where <= kAhead; ahead++) words_.prefetch_word(*ahead);
            if (++pulse % (1 << 20) == 0 && pulses) pulse_();
            const uint32_t start = *where, middle = start + size_a, after = middle + size_b;
            if (words_.id(start) != a || words_.id(middle) != b) continue;  // part of something else since
            const int64_t count = words_.count_of_word(words_.word_start(start));
            const uint32_t left = words_.id(start - 1), right = words_.id(after);
            if (left < Words::kHeader) {
                if (left == new_id) found.undone += count;
                found.left.note(left, start - words_.length(left), count);
            }
            if (right < Words::kHeader) found.right.note(right, start, count);
            words_.join(start, middle, after, new_id);
        }
    }

    static void append(Side& sum, Side& side) {
        for (uint32_t id : side.ids) {
            if (sum.known[id].places == 0) sum.ids.push_back(id);
            append(sum.known[id], side.known[id]);
        }
    }

    // Where a thread's places of the new pairs go: behind those of earlier threads.
    static void place(Side& side, const Side& sum) {
        for (uint32_t id : side.ids)
            if (sum.known[id].where) side.known[id].where = sum.known[id].where + side.known[id].places;
    }

    // Write the places of the new pairs into their lists, and forget the neighbours.
    static void settle(Found& found) {
        for (Side* side : {&found.left, &found.right}) {
            for (const Event& event : side->events)
                if (uint32_t*& where = side->known[event.id].where) *where++ = event.place;
            for (uint32_t id : side->ids) side->known[id] = {};
            side->ids.clear();
            side->events.clear();
        }
    }

    Words words_;
    size_t wanted_, learned_ = 0;
    Pulse pulse_;
    Team team_;
    std::vector<size_t> borders_;  // of the cells that each thread looks after
    int64_t threshold_;
    bool collected_ = false;
    PairTable<Occurrences> pairs_;
    std::priority_queue<Entry> heap_;
    std::vector<Found> found_;  // by thread
};

}  // namespace tinylm
