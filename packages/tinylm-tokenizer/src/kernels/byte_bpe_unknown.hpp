// Pieces that are neither tokens nor remembered, collected until there are enough to be merged side by side
// (merge_lanes.hpp). Meanwhile what comes after them is written as if they had no ids; then that is moved apart and theirs
// are put between. No Python here.
#pragma once

#include <array>

#include "ids.hpp"
#include "merge_lanes.hpp"

namespace tinylm {

class UnknownPieces {
  public:
    bool room_for(size_t more) const { return places_ + more <= kPlaces && count_ + more <= kPieces; }

    // `at`: how many ids come before the piece. It has at most LanePiece::kMost bytes. New pieces come in crowds, so many
    // are here already.
    void add(const Piece& piece, size_t at) {
        size_t slot = piece.hash % kSlots;
        while (slots_[slot] && !is_same(pieces_[slots_[slot] - 1], piece)) slot = (slot + 1) % kSlots;
        if (!slots_[slot]) {
            LanePiece& mine = pieces_[count_];
            slots_[slot] = uint16_t(++count_);
            mine.size = uint32_t(piece.size);
            if (piece.size <= kShort) [[likely]]
                std::memcpy(mine.bytes, &piece.key, sizeof piece.key);  // its bytes, and one that tells how many
            else
                std::memcpy(mine.bytes, piece.bytes, piece.size);
        }
        at_[places_] = at, piece_[places_] = uint16_t(slots_[slot] - 1);
        places_++;
    }

    // Puts the ids of all pieces into `out`, and forgets the pieces. merge(bytes, size, ids) → how many ids: of one alone;
    // done(piece) is told of each.
    template <class Merge, class Done>
    void settle(const Lanes& lanes, IdArray& out, Merge merge, Done done) {
        merge_all(lanes, merge);
        for (size_t i = 0; i < count_; i++) done(pieces_[i]);
        size_t fresh = 0;
        for (size_t i = 0; i < places_; i++) fresh += pieces_[piece_[i]].count;
        const uint32_t* from = out.room_for(fresh);
        uint32_t* to = out.data() + out.size() + fresh;
        out.grown_to(to);
        while (places_ > 0) {
            const LanePiece& piece = pieces_[piece_[--places_]];
            const size_t behind = size_t(from - (out.data() + at_[places_]));
            from -= behind, to -= behind;
            std::memmove(to, from, behind * sizeof(uint32_t));
            to -= piece.count;
            std::memcpy(to, piece.ids, piece.count * sizeof(uint32_t));
        }
        count_ = 0;
        slots_.fill(0);
    }

  private:
    static constexpr size_t kPieces = 256, kPlaces = 512, kSlots = 512;
    static constexpr size_t kFew = 4;  // so many and fewer are quicker one after the other

    static bool is_same(const LanePiece& mine, const Piece& piece) {
        if (mine.size != piece.size) return false;
        if (piece.size <= kShort) return !std::memcmp(mine.bytes, &piece.key, sizeof piece.key);
        return !std::memcmp(mine.bytes, piece.bytes, piece.size);
    }

    template <class Merge>
    void merge_all(const Lanes& lanes, Merge merge) {
        LanePiece* sorted[kPieces];  // by size, so that those side by side take about as many steps
        size_t places[LanePiece::kMost + 2] = {};
        uint32_t* ids = ids_;
        for (size_t i = 0; i < count_; i++) {
            LanePiece& piece = pieces_[i];
            places[piece.size + 1]++;
            piece.count = 0, piece.ids = ids;
            ids += piece.size;
        }
        for (size_t size = 1; size <= LanePiece::kMost; size++) places[size] += places[size - 1];
        for (size_t i = 0; i < count_; i++) sorted[places[pieces_[i].size]++] = &pieces_[i];
        const size_t rest = count_ % Lanes::kWidth;  // the shortest ones
        const size_t alone = rest <= kFew ? rest : 0;
        lanes.merge(sorted + alone, count_ - alone);
        for (size_t i = 0; i < count_; i++) {
            LanePiece& piece = pieces_[i];
            if (!piece.count) piece.count = uint32_t(merge(piece.bytes, piece.size, piece.ids));
        }
    }

    size_t count_ = 0, places_ = 0;
    LanePiece pieces_[kPieces];
    uint32_t ids_[kPieces * LanePiece::kMost];  // of all of them
    size_t at_[kPlaces];
    uint16_t piece_[kPlaces];               // which one is there
    std::array<uint16_t, kSlots> slots_{};  // by hash: the number of a piece, from 1 on; 0: none
};

}  // namespace tinylm
