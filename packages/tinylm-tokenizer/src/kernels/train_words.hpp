// The distinct pieces of a corpus while they are being merged: all tokens of all words in one array. No Python here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

#include "count.hpp"
#include "large_pages.hpp"
#include "merge.hpp"
#include "train_team.hpp"

namespace tinylm {

// A token of n bytes takes n cells of 32 bits. Its id stands in the first and in the last of them, so that both
// neighbours of a token are found at once and no word is ever moved; the cells between hold what no longer counts.
// A cell has 24 bits for the id and 7 that say how far it is from the start of its word. Before each word stand two
// cells with the highest bit set, which hold 62 bits of its count. Words of more than 128 bytes come last: there the
// start of a word is looked up.
class Words {
  public:
    static constexpr uint32_t kHeader = 1u << 31;
    static constexpr uint32_t kMostIds = (1u << 24) - 1;

    // for_each(part, parts, f): calls f(piece, count) for each distinct piece of a part of them, always in the same order;
    // pieces of more than kLong bytes stay where they are until the end.
    template <class ForEach>
    Words(ForEach&& for_each, const std::vector<uint32_t>& byte_ids, size_t ids, Team& team) : length_(ids, 1) {
        std::vector<Part> parts(team.size());
        team.run([&](size_t number) {
            Part part;
            for_each(number, parts.size(), [&](std::string_view piece, int64_t count) {
                if (piece.size() < 2) return;
                part.pairs += count * int64_t(piece.size() - 1);
                if (piece.size() > kLong)
                    part.long_words.emplace_back(piece, count);
                else
                    part.cells += piece.size() + 2;
            });
            parts[number] = std::move(part);
        });
        size_t cells = 1, long_cells = 0;
        for (Part& part : parts) {
            pairs_ += part.pairs;
            cells += std::exchange(part.cells, cells - 1);
            for (const auto& [piece, count] : part.long_words) long_cells += piece.size() + 2;
        }
        if (cells + long_cells > UINT32_MAX)
            throw std::length_error("the distinct pieces of the corpus have more than 4 GB");
        cells_.resize(cells + long_cells);
        team.run([&](size_t number) {
            uint32_t* at = &cells_[parts[number].cells];
            for_each(number, parts.size(), [&](std::string_view piece, int64_t count) {
                if (piece.size() >= 2 && piece.size() <= kLong) at = lay_out(piece, count, byte_ids, kDistance, at);
            });
        });
        uint32_t* at = &cells_[cells - 1];
        for (const Part& part : parts)
            for (const auto& [piece, count] : part.long_words) {
                long_starts_.push_back(uint32_t(at - cells_.data()) + 2);
                at = lay_out(piece, count, byte_ids, 0, at);
            }
        *at = kHeader;
    }

    int64_t pairs() const { return pairs_; }  // of neighbouring bytes in the whole corpus
    uint32_t length(uint32_t id) const { return length_[id]; }

    void prefetch_word(uint32_t place) const {  // the token, and the start of its word unless that is far away
        prefetch(&cells_[place]);
        prefetch(&cells_[place - std::min(place, 14u)]);
    }

    // The id in a cell; kHeader or more: none, a word ends before the cell or starts behind it.
    uint32_t id(size_t place) const {
        const uint32_t cell = cells_[place];
        return cell & kHeader ? cell : cell & kId;
    }

    uint32_t word_start(uint32_t place) const {
        if (long_starts_.empty() || place < long_starts_.front()) return place - cells_[place] / kDistance;
        return *--std::upper_bound(long_starts_.begin(), long_starts_.end(), place);
    }

    int64_t count_of_word(size_t start) const {
        return int64_t(cells_[start - 2] & ~kHeader) << 31 | (cells_[start - 1] & ~kHeader);
    }

    void new_token(uint32_t id, uint32_t length) { length_[id] = length; }

    // The tokens of cells [start, middle) and [middle, end) become one.
    void join(size_t start, size_t middle, size_t end, uint32_t id) {
        cells_[middle] |= kId;  // so that nobody takes this for the start of a token
        cells_[start] = (cells_[start] & ~kId) | id;
        cells_[end - 1] = (cells_[end - 1] & ~kId) | id;
    }

    // Where the cells are divided between `parts` threads: parts + 1 places, each before a word.
    std::vector<size_t> divide(size_t parts) const {
        std::vector<size_t> places{0};
        for (size_t part = 1; part < parts; part++) {
            size_t place = std::max(places.back(), cells_.size() / parts * part);
            while (place + 1 < cells_.size() && !(cells_[place] & cells_[place + 1] & kHeader)) place++;
            places.push_back(std::min(place, cells_.size() - 1));
        }
        places.push_back(cells_.size() - 1);
        return places;
    }

    size_t cells() const { return cells_.size(); }

    // f(pair's key, place of its left half, count) for each pair of neighbours, in the order of the cells.
    template <class F>
    void each_pair(size_t begin, size_t end, F&& f) const {
        while (begin < end) {
            size_t left = begin + 2;
            const int64_t count = count_of_word(left);
            for (uint32_t left_id = id(left);;) {
                const size_t right = left + length_[left_id];
                const uint32_t right_id = id(right);
                begin = right;
                if (right_id >= kHeader) break;
                f(pair_key(left_id, right_id), uint32_t(left), count);
                left = right;
                left_id = right_id;
            }
        }
    }

  private:
    static constexpr uint32_t kId = kMostIds;
    static constexpr uint32_t kDistance = kId + 1;
    static constexpr size_t kLong = 128;

    struct Part {  // of the pieces
        size_t cells = 0;  // how many its words take; then how many come before
        int64_t pairs = 0;
        std::vector<std::pair<std::string_view, int64_t>> long_words;
    };

    // A word's cells, from `at` on; gives where they end.
    static uint32_t* lay_out(std::string_view piece, int64_t count, const std::vector<uint32_t>& byte_ids, uint32_t step,
                             uint32_t* at) {
        *at++ = kHeader | uint32_t(count >> 31);
        *at++ = kHeader | (uint32_t(count) & ~kHeader);
        uint32_t distance = 0;
        for (unsigned char byte : piece) {
            *at++ = distance | byte_ids[byte];
            distance += step;
        }
        return at;
    }

    LargeVector<uint32_t> cells_;
    std::vector<uint32_t> long_starts_;
    std::vector<uint32_t> length_;  // of each id, in bytes
    int64_t pairs_ = 0;
};

}  // namespace tinylm
