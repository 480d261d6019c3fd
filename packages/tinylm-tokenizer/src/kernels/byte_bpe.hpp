// Byte-level BPE: UTF-8 text to ids. No Python here (byte_bpe.cpp is the border). The readable version is
// byte_bpe_fast.py: Encoder.
//
// Pieces come from scan.hpp; those of characters of three bytes and more are cut into parts that cannot merge with each
// other (byte_bpe_borders.hpp). Of a batch first all keys are hashed and their slots fetched towards the cache, then all
// are looked up (byte_bpe_table.hpp), so that one's memory access runs while the next one is prepared. A piece that is
// neither token nor remembered is merged (merge.hpp, or with others: byte_bpe_unknown.hpp) and remembered.
#pragma once

#include <array>
#include <memory>
#include <string>

#include "byte_bpe_borders.hpp"
#include "ids.hpp"
#include "byte_bpe_ranks.hpp"
#include "byte_bpe_table.hpp"
#include "byte_bpe_unknown.hpp"
#include "scan.hpp"

namespace tinylm {

struct EncoderOptions {
    Pattern pattern;
    bool ranked;             // merges follow from the tokens (RankRules); otherwise there is a list of them
    bool whole_piece_first;  // a piece that is a token is that token, whatever the merges say
    bool merges_make_all;    // known: the bytes of every token merge to that token, so nobody needs to look
};

class ByteBpe {
    struct Prepared {
        Key key;
        uint64_t hash;
    };

  public:
    // byte_ids: the id of each byte; merges: left, right, result, in order of rank; tokens: the bytes of each id of `ids`,
    // which must stay where they are, with 16 bytes behind them that may be read.
    ByteBpe(EncoderOptions options, const uint32_t* byte_ids, const uint32_t* merges, size_t merge_count,
            const std::vector<std::string_view>& tokens, const std::vector<uint32_t>& ids)
        : options_(options), short_(tokens.size()), pairs_(merge_count), ranks_(short_, long_) {
        std::copy(byte_ids, byte_ids + 256, byte_ids_.begin());
        for (size_t rank = 0; rank < merge_count; rank++, merges += 3)
            pairs_.add(merges[0], merges[1], {uint32_t(rank), merges[2]});
        const uint32_t highest = *std::max_element(ids.begin(), ids.end());
        const size_t ranks_below = std::max(size_t(highest), merge_count) + 1;
        linear_ = ranks_below <= kLinearRanks ? kLinear : 0;
        sizes_.resize(linear_ ? ranks_below : 0);
        for (size_t i = 0; linear_ && i < tokens.size(); i++) sizes_[ids[i]] = uint32_t(tokens[i].size());
        // As when encoding: first all keys and their hashes, then slot after slot, fetched ahead.
        std::vector<Prepared> prepared(tokens.size());
        std::vector<std::string_view> long_tokens;
        std::vector<uint32_t> long_ids;
        for (size_t i = 0; i < tokens.size(); i++) {
            const bool is_short = tokens[i].size() <= kShort;
            const Key key = is_short ? key_of(bytes_of(tokens[i]), tokens[i].size(), true) : Key{};
            prepared[i] = {key, is_short ? key.hash() : LongTokens::hash(tokens[i])};
            if (options.ranked) ranks_.add(tokens[i], prepared[i].hash, ids[i]);
            if (!is_short || ((key.low | key.high) & 0x8080808080808080)) borders_.add(tokens[i]);  // ASCII tells nothing
        }
        constexpr size_t ahead = 16;
        for (size_t i = 0; i < tokens.size(); i++) {
            if (i + ahead < tokens.size()) short_.prefetch(prepared[i + ahead].hash);
            if (!options.whole_piece_first && !merges_to(tokens[i], ids[i])) continue;
            if (tokens[i].size() <= kShort) {
                short_.add_token(prepared[i].key, prepared[i].hash, ids[i]);
            } else {
                long_tokens.push_back(tokens[i]);
                long_ids.push_back(ids[i]);
            }
        }
        long_.build(long_tokens, long_ids);
        if (options.ranked && options.whole_piece_first && linear_) lanes_.build(tokens, ids, byte_ids_.data(), ranks_.two(), short_, long_);
        // A part of a piece is looked up as a piece is. A token that only a whole piece can be must not be found there.
        cuts_ = !options.whole_piece_first || options.merges_make_all || merges_make_all(tokens, ids);
    }

    // Appends the ids of `size` bytes of valid UTF-8 to `ids`. final: the text ends there; otherwise it stops where more
    // text could change what comes. Returns how many bytes are done. readable: how many bytes may be read from `text` on.
    size_t encode(const uint8_t* text, size_t size, bool final, size_t readable, IdArray& ids) {
        size_t done = 0;
        Output out{ids};
        with_scanner(options_.pattern, text, size, final, [&](auto scanner) {
            size_t ends[scanner.kMost];
            while (const size_t count = scanner.next(ends)) {
                encode_pieces(text, done, ends, count, readable, out);
                done = ends[count - 1];
            }
        });
        if (out.unknown) settle(out);
        return done;
    }

    // Whether new pieces are merged side by side (merge_lanes.hpp).
    bool side_by_side() const { return lanes_.ready(); }

  private:
    struct Output {
        IdArray& ids;
        std::unique_ptr<UnknownPieces> unknown = nullptr;  // made where there is one
    };

    static const uint8_t* bytes_of(std::string_view text) { return reinterpret_cast<const uint8_t*>(text.data()); }

    // Bytes of one batch of pieces up to which 32 bits say where a piece starts.
    static constexpr size_t kHuge = size_t(1) << 31;

    // A piece, or a part of one, that is to be looked up.
    struct Part {
        uint64_t low, high;  // its key
        PieceTable::Place place;
        uint32_t start, size;  // of text
    };

    static constexpr size_t kParts = 128;
    static_assert(FastScanner<Pattern::gpt2>::kBatch + kWindow <= kParts);

    void encode_pieces(const uint8_t* text, size_t start, const size_t* ends, size_t count, size_t readable, Output& out) {
        size_t quick = count;  // from their ends on 16 bytes may be read
        while (quick > 0 && ends[quick - 1] + 16 > readable) quick--;
        if (ends[count - 1] - start > kHuge) [[unlikely]] quick = 0;
        Part parts[kParts];
        size_t waiting = 0;
        const uint8_t* base = text + start;
        uint32_t from = 0;
        for (size_t i = 0; i < quick; i++) {
            const uint32_t size = uint32_t(ends[i] - start) - from;
            const uint8_t* piece = base + from;
            // By its first two bytes, as a blank often comes first. For characters of two bytes cutting does not pay.
            if (((piece[0] | piece[1]) & 0x80) && cuts_ && (piece[0] >= 0xE0 || piece[1] >= 0xE0)) [[unlikely]] {
                waiting = prepare_parts(parts, waiting, base, from, from + size, out);
                if (waiting + (quick - i) > kParts) waiting = resolve(parts, waiting, base, out);
            } else {
                prepare(parts[waiting++], base, from, size);
            }
            from += size;
        }
        if (waiting) resolve(parts, waiting, base, out);
        for (size_t i = quick, at = start + from; i < count; at = ends[i++]) encode_one(text + at, ends[i] - at, out);
    }

    // Cuts a piece and prepares its parts; returns how many are waiting then.
    [[gnu::noinline]] size_t prepare_parts(Part* parts, size_t waiting, const uint8_t* text, size_t start, size_t end,
                                           Output& out) {
        borders_.cut(text, start, end, [&](size_t from, size_t to) {
            if (waiting == kParts) waiting = resolve(parts, waiting, text, out);
            prepare(parts[waiting++], text, uint32_t(from), uint32_t(to - from));
        });
        return waiting;
    }

    void prepare(Part& part, const uint8_t* text, uint32_t start, uint32_t size) const {
        part.start = start;
        part.size = size;
        if (size <= kShort) [[likely]] {
            const Key key = key_of(text + start, size, true);
            part.low = key.low, part.high = key.high;
            part.place = short_.prefetch(key.hash());
        } else {
            prepare_long(part, text + start);
        }
    }

    [[gnu::noinline]] void prepare_long(Part& part, const uint8_t* text) const {
        const Key key = key_of_long(text, part.size);
        if (part.size <= long_.longest()) long_.prefetch(key.low);
        part.low = key.low, part.high = key.high;
        part.place = short_.prefetch(key.low);
    }

    // What is neither a token nor remembered for its length needs no hash.
    Key key_of_long(const uint8_t* piece, size_t size) const {
        return long_key(size <= std::max(long_.longest(), IdStore::kBytes) ? hash_bytes(piece, size) : 0, size);
    }

    // The same without reading behind the piece and for any length: for what ends a text, mostly.
    [[gnu::noinline]] void encode_one(const uint8_t* piece, size_t size, Output& out) {
        if (out.unknown && !out.unknown->room_for(1)) settle(out);
        uint32_t* next = out.ids.room_for(size + PieceTable::kInSlot);
        const Key key = size <= kShort ? key_of(piece, size, false) : key_of_long(piece, size);
        out.ids.grown_to(next + encode_unknown({key, piece, size}, next, out));
    }

    // Appends the ids of all parts; returns 0, which is how many are waiting then.
    [[gnu::noinline]] size_t resolve(const Part* parts, size_t count, const uint8_t* text, Output& out) {
        if (!count) return 0;
        if (out.unknown && !out.unknown->room_for(count)) settle(out);
        const Part* last = parts + count - 1;
        uint32_t* next = out.ids.room_for(size_t(last->start + last->size - parts[0].start) + PieceTable::kInSlot);
        for (const Part* part = parts; part <= last; part++) {
            const Key key{part->low, part->high};
            const size_t known = PieceTable::find(key, part->place, next);
            next += known ? known : encode_unknown({key, text + part->start, part->size}, next, out);
        }
        out.ids.grown_to(next);
        return 0;
    }

    // A piece that is not known at its own place in the table.
    [[gnu::noinline]] size_t encode_unknown(const Piece& piece, uint32_t* ids, Output& out) {
        if (piece.size > kShort) {
            const std::string_view view(reinterpret_cast<const char*>(piece.bytes), piece.size);
            const uint32_t token = long_.find(view, piece.hash);
            if (token != kNone) {
                *ids = token;
                return 1;
            }
        }
        if (const size_t known = short_.look_further(piece, ids)) return known;
        if (lanes_.ready() && piece.size > 1 && piece.size <= LanePiece::kMost) {
            if (!out.unknown) out.unknown.reset(new UnknownPieces);  // not ..._unique, which would set all to zero
            out.unknown->add(piece, size_t(ids - out.ids.data()));
            return 0;  // they come later
        }
        const size_t count = merge(piece.bytes, piece.size, ids);
        short_.remember(piece, ids, count);
        return count;
    }

    // Merges and remembers the pieces that were left for later.
    [[gnu::noinline]] void settle(Output& out) {
        const auto alone = [this](const uint8_t* piece, size_t size, uint32_t* ids) { return merge(piece, size, ids); };
        out.unknown->settle(lanes_, out.ids, alone, [this](const LanePiece& piece) {
            const bool is_short = piece.size <= kShort;
            const Key key = is_short ? key_of(piece.bytes, piece.size, true) : key_of_long(piece.bytes, piece.size);
            short_.remember({key, piece.bytes, piece.size}, piece.ids, piece.count);
        });
    }

    size_t merge(const uint8_t* piece, size_t size, uint32_t* ids) const {
        return options_.ranked ? merge_by(ranks_, piece, size, ids) : merge_by(pairs_, piece, size, ids);
    }

    template <class Rules>
    size_t merge_by(const Rules& rules, const uint8_t* piece, size_t size, uint32_t* ids) const {
        auto merge_one = [&](const uint8_t* bytes, size_t length, uint32_t* out) {
            if (length <= linear_) {
                uint8_t copy[kLinear + 16];
                std::memcpy(copy, bytes, length);
                return merge_short(rules, byte_ids_.data(), copy, length, out);
            }
            std::vector<uint8_t> copy(bytes, bytes + length);
            copy.resize(length + 16);
            return merge_long(rules, byte_ids_.data(), copy.data(), length, out);
        };
        if (size <= kLinear || linear_ == 0) return merge_one(piece, size, ids);
        return merge_windows(merge_one, sizes_.data(), piece, size, ids);
    }

    // Whether merging the bytes of a token gives that token, so that looking it up is only quicker.
    bool merges_to(std::string_view token, uint32_t id) const {
        std::vector<uint32_t> ids(token.size() + 1);
        return merge(bytes_of(token), token.size(), ids.data()) == 1 && ids[0] == id;
    }

    bool merges_make_all(const std::vector<std::string_view>& tokens, const std::vector<uint32_t>& ids) const {
        for (size_t i = 0; i < tokens.size(); i++)
            if (!merges_to(tokens[i], ids[i])) return false;
        return true;
    }

    EncoderOptions options_;
    std::array<uint32_t, 256> byte_ids_;
    size_t linear_ = 0;            // bytes up to which merge_short can be used
    bool cuts_ = true;             // whether pieces may be cut before they are looked up
    std::vector<uint32_t> sizes_;  // id → bytes of the token
    Borders borders_;
    PieceTable short_;
    LongTokens long_;
    PairRules pairs_;
    RankRules ranks_;
    Lanes lanes_;
};

}  // namespace tinylm
