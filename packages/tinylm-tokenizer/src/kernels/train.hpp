// Learning the merges. No Python here. The readable version is byte_bpe.py: train_merges; byte_bpe_fast.py says why only
// the words that hold the merged pair need to be looked at again. What this file does beyond that:
//   - A pair knows where it occurs. New occurrences of (l, r) arise only while the younger of the two is being made, so
//     each list of places is written once, in ascending order, and a count can only fall afterwards.
//   - For the same reason the highest count never rises: a pair below a threshold is not kept at all. When the heap runs
//     dry the threshold goes down and the pairs are counted anew.
//   - Several merges are made in one go. The second best pair (c, d) is the next merge after the best one (a, b) unless
//     d = a or c = b: its own count does not change, and a new pair (x, ab) or (ab, y) occurs no more often than (x, a)
//     or (b, y) did, which came after (c, d), and with the same count comes after it as well, since no id is higher
//     than that of ab. The same holds for the third beside both, and so on. (a, a) is the last of its batch: "aaaa" may
//     leave (aa, aa) behind.
//   - A batch is shared between threads twice: each first makes all its merges in its own part of the cells, then brings
//     its own share of the pairs up to date. What was found is put together in the order of the cells, so that the
//     number of threads changes nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "train_found.hpp"
#include "train_team.hpp"
#include "train_words.hpp"

namespace tinylm {

class Trainer {
  public:
    using Pulse = std::function<void()>;  // called now and then in long loops; may throw to end them

    template <class ForEach>  // see Words
    Trainer(ForEach&& for_each, const std::vector<uint32_t>& byte_ids, size_t wanted, size_t threads, Pulse pulse)
        : team_(threads), words_(for_each, byte_ids, 256 + wanted, team_), wanted_(wanted), pulse_(std::move(pulse)),
          borders_(words_.divide(team_.size())), pairs_(team_.size()), left_of_(256 + wanted), right_of_(256 + wanted) {
        for (size_t thread = 0; thread < team_.size(); thread++) found_.emplace_back(256 + wanted, team_.size());
        if (team_.size() > 1)
            for (size_t thread = 0; thread < team_.size(); thread++) sums_.emplace_back(256 + wanted);
        threshold_ = std::max<int64_t>(1, words_.pairs() / int64_t(kPairsPerMerge * std::max<size_t>(wanted, 1)));
    }

    // Learn up to `most` further merges; fewer when no pair is left.
    std::vector<Pair> step(size_t most) {
        std::vector<Pair> merges;
        while (merges.size() < most && learned_ < wanted_) {
            choose(std::min(most - merges.size(), wanted_ - learned_));
            if (!batch_.empty()) {
                for (const Merging& merging : batch_) merges.emplace_back(merging.left, merging.right);
                merge();
                continue;
            }
            if (collected_ && threshold_ == 1) break;
            if (collected_) threshold_ = std::max<int64_t>(1, threshold_ / 8);
            collect();
        }
        return merges;
    }

  private:
    static constexpr size_t kPairsPerMerge = 64;     // sets the first threshold; too few: pairs are counted again
    static constexpr size_t kPart = 1 << 21;         // cells whose pairs are all counted at once
    static constexpr size_t kAhead = 16;             // places fetched into the cache before they are needed
    static constexpr size_t kMostPlaces = 1 << 14;   // of a batch, unless it has one merge: what is found needs memory

    static constexpr size_t kReady = 48;             // pairs that the threads make ready: more than most batches have

    struct Tally {  // of a pair
        int64_t count = 0;
        uint32_t places = 0;
        uint32_t* where = nullptr;  // where the next of these places has to be written; null: nowhere
    };
    struct Sums {  // of what the threads have found about the pairs of one share
        explicit Sums(size_t ids) : known(ids) {}
        std::vector<Made> all;
        Known known;
    };

    // Count all pairs and keep those that reach the threshold, with their places. A part of the pairs at a time, so
    // that those that are not kept need little memory.
    void collect() {
        collected_ = true;
        for (Pairs& pairs : pairs_) pairs.clear();
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
            team_.run([&](size_t share) { keep_share(share, all); });
            team_.run([&](size_t thread) {
                all[thread].for_each([&](uint64_t key, Tally& tally) {
                    if (tally.where) kept[thread].insert(key).where = tally.where;
                });
            });
        }
        team_.run([&](size_t thread) {
            words_.each_pair(borders_[thread], borders_[thread + 1], [&](uint64_t key, uint32_t left, int64_t) {
                if (Tally* tally = kept[thread].find(key)) *tally->where++ = left;
            });
        });
    }

    // Keep the pairs of one share that the threads have counted often enough; each thread's tally then says where the
    // places of this thread go.
    void keep_share(size_t share, std::vector<PairTable<Tally>>& all) {
        auto each = [&](auto&& f) {
            for (PairTable<Tally>& tallies : all)
                tallies.for_each([&](uint64_t key, Tally& tally) {
                    if (Pairs::share_of(key, all.size()) == share) f(key, tally);
                });
        };
        PairTable<Tally> sums;
        each([&](uint64_t key, Tally& tally) {
            Tally& sum = sums.insert(key);
            sum.count += tally.count;
            sum.places += std::exchange(tally.places, sum.places);
        });
        sums.for_each([&](uint64_t key, Tally& sum) {
            if (sum.count >= threshold_) sum.where = pairs_[share].keep(key, sum.count, sum.places, threshold_);
        });
        each([&](uint64_t key, Tally& tally) {
            if (const Tally* sum = sums.find(key); sum->where) tally.where = sum->where + tally.places;
        });
    }

    // The next merges, as many as can be made in one go.
    void choose(size_t most) {
        batch_.clear();
        stamp_++;
        for (size_t places = 0; batch_.size() < most;) {
            Pairs* best = nullptr;
            const Candidate* first = nullptr;
            for (Pairs& pairs : pairs_)
                if (const Candidate* candidate = pairs.best(threshold_); candidate && (!first || *first < *candidate))
                    best = &pairs, first = candidate;
            if (!first) break;
            const Pair pair{uint32_t(first->key >> 32), uint32_t(first->key)};
            if (left_of_[pair.second] == stamp_ || right_of_[pair.first] == stamp_) break;
            batch_.push_back({pair.first, pair.second, uint32_t(256 + learned_++), best->take_best()});
            left_of_[pair.first] = right_of_[pair.second] = stamp_;
            places += batch_.back().where.size;
            if (pair.first == pair.second || places > kMostPlaces) break;
        }
    }

    void merge() {
        pulse_();
        for (const Merging& merging : batch_)
            words_.new_token(merging.new_id, words_.length(merging.left) + words_.length(merging.right));
        team_.run([&](size_t thread) { join(thread); });
        team_.run([&](size_t share) { update(share); });
        team_.run([&](size_t thread) { found_[thread].settle(); });
    }

    // Make the merges in one thread's part of the cells, and note what they change.
    void join(size_t thread) {
        Found& found = found_[thread];
        std::vector<std::pair<const uint32_t*, const uint32_t*>> parts;  // of the lists of places
        for (const Merging& merging : batch_) {
            const uint32_t *where = merging.where.start, *end = where + merging.where.size;
            if (thread + 1 < team_.size()) end = std::lower_bound(where, end, uint32_t(borders_[thread + 1]));
            if (thread > 0) where = std::lower_bound(where, end, uint32_t(borders_[thread]));
            parts.emplace_back(where, end);
        }
        size_t part_ahead = 0;
        const uint32_t* ahead = parts[0].first;
        auto fetch = [&] {
            while (ahead == parts[part_ahead].second) {
                if (part_ahead + 1 == parts.size()) return;
                ahead = parts[++part_ahead].first;
            }
            words_.prefetch_word(*ahead++);
        };
        for (size_t i = 0; i < kAhead; i++) fetch();
        uint32_t pulse = 0;
        for (size_t number = 0; number < batch_.size(); number++) {
            const Merging& merging = batch_[number];
            const uint32_t size_a = words_.length(merging.left), size_b = words_.length(merging.right);
            for (auto [where, end] = parts[number]; where < end; where++) {
                fetch();
                if (++pulse % (1 << 20) == 0 && thread == 0) pulse_();
                const uint32_t start = *where, middle = start + size_a, after = middle + size_b;
                if (words_.id(start) != merging.left || words_.id(middle) != merging.right) continue;  // no more
                const int64_t count = words_.count_of_word(words_.word_start(start));
                const uint32_t left = words_.id(start - 1), right = words_.id(after);
                if (left < Words::kHeader) found.left(merging, left, count, start - words_.length(left));
                if (right < Words::kHeader) found.right(merging, right, count, start);
                words_.join(start, middle, after, merging.new_id);
            }
            found.end_merge(merging);
        }
    }

    // Bring one share of the pairs up to date with what all threads have found.
    void update(size_t number) {
        Pairs& pairs = pairs_[number];
        pairs.begin_update();
        if (found_.size() == 1) {
            for (Made& made : found_[0].shares[0].made)
                if (made.count >= threshold_) made.where = pairs.keep(made.key, made.count, made.places, threshold_);
        } else {
            keep_sums(number);
        }
        for (const Found& found : found_) {
            const std::vector<Gone>& gone = found.shares[number].gone;
            for (size_t i = 0; i < gone.size(); i++) {
                if (i + kAhead < gone.size()) pairs.prefetch(gone[i + kAhead].key);
                pairs.lower(gone[i].key, gone[i].count, threshold_);
            }
        }
        pairs.prepare(team_.size() > 1 ? kReady / team_.size() : 0, threshold_);
    }

    // Keep the new pairs of one share that all threads together have found often enough, with the places of earlier
    // threads first.
    void keep_sums(size_t number) {
        Sums& sums = sums_[number];
        sums.all.clear();
        for (size_t merge = 0; merge < batch_.size(); merge++) {
            const uint32_t new_id = batch_[merge].new_id;
            for (Found& found : found_) {
                FoundShare& share = found.shares[number];
                for (size_t at = merge ? share.ends[merge - 1] : 0; at < share.ends[merge]; at++) {
                    Made& made = share.made[at];
                    const uint32_t left = uint32_t(made.key >> 32), right = uint32_t(made.key);
                    uint32_t& known = right == new_id ? sums.known.left(left) : sums.known.right(right);
                    Made& sum = Known::note(sums.all, known, made.key, made.count, 0);
                    sum.places += std::exchange(made.places, sum.places);
                    made.count = known;
                }
            }
        }
        for (Made& sum : sums.all)
            if (sum.count >= threshold_) sum.where = pairs_[number].keep(sum.key, sum.count, sum.places, threshold_);
        for (Found& found : found_)
            for (Made& made : found.shares[number].made)
                if (uint32_t* where = sums.all[made.count].where) made.where = where + made.places;
    }

    Team team_;
    Words words_;
    size_t wanted_, learned_ = 0;
    Pulse pulse_;
    std::vector<size_t> borders_;  // of the cells that each thread looks after
    int64_t threshold_;
    bool collected_ = false;
    std::vector<Pairs> pairs_;              // by share
    std::vector<Found> found_;              // by thread, in its cells
    std::vector<Sums> sums_;                // by share; none with a single thread
    std::vector<Merging> batch_;            // what is being merged
    std::vector<uint32_t> left_of_, right_of_;  // by id: the last batch in which it was this half of a pair
    uint32_t stamp_ = 0;
};

}  // namespace tinylm
