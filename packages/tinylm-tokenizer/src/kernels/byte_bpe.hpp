// Byte-level BPE: UTF-8 text to ids. No Python here (byte_bpe.cpp is the border). The readable version is
// byte_bpe_fast.py: Encoder.
//
// Pieces come from scan.hpp; those of characters of three bytes and more are cut into parts that cannot merge with each
// other (byte_bpe_borders.hpp). Of a batch first all keys are hashed and their slots fetched towards the cache, then all
// are looked up (byte_bpe_table.hpp), so that one's memory access runs while the next one is prepared. A piece that is
// neither token nor remembered is merged (merge.hpp) and remembered.
#pragma once

#include <array>
#include <memory>
#include <string>

#include "byte_bpe_borders.hpp"
#include "byte_bpe_table.hpp"
#include "scan.hpp"

namespace tinylm {

// Ids that are being collected: an array that grows and is never initialised.
class IdBuffer {
  public:
    uint32_t* room_for(size_t more) {  // where the next ids go
        if (size_ + more > capacity_) {
            capacity_ = std::max(2 * capacity_, size_ + more + 1024);
            std::unique_ptr<uint32_t[]> larger(new uint32_t[capacity_]);
            std::memcpy(larger.get(), ids_.get(), size_ * sizeof(uint32_t));
            ids_ = std::move(larger);
        }
        return ids_.get() + size_;
    }

    void grown_to(const uint32_t* end) { size_ = size_t(end - ids_.get()); }
    void clear() { size_ = 0; }
    size_t size() const { return size_; }
    const uint32_t* data() const { return ids_.get(); }
    uint32_t* release() { return ids_.release(); }

  private:
    std::unique_ptr<uint32_t[]> ids_{new uint32_t[1]};
    size_t size_ = 0, capacity_ = 1;
};

// Any two neighbours merge whose bytes together are a token, the lowest id first (tiktoken). No list of pairs is kept:
// the joined bytes are looked up. Most are no token, and a bit per hash says so without a look at the table.
class RankRules {
  public:
    RankRules(const PieceTable& short_tokens, const LongTokens& long_tokens)
        : short_tokens_(short_tokens), long_tokens_(long_tokens), two_(1 << 16, kNone), filter_(kBits / 64) {}

    void add(std::string_view token, uint64_t hash, uint32_t id) {
        if (token.size() == 2) two_[uint8_t(token[0]) << 8 | uint8_t(token[1])] = id;
        filter_[hash % kBits / 64] |= uint64_t(1) << hash % 64;
    }

    Merge find(const uint8_t* bytes, size_t size, uint32_t, uint32_t) const {
        if (size == 2) {
            const uint32_t id = two_[bytes[0] << 8 | bytes[1]];
            return {id, id};
        }
        uint32_t id = kNone;
        if (size <= kShort) {
            const Key key = key_of(bytes, size, true);
            const uint64_t hash = key.hash();
            if (maybe(hash)) id = short_tokens_.find_token(key, hash);
        } else if (size <= long_tokens_.longest()) {
            const std::string_view token(reinterpret_cast<const char*>(bytes), size);
            const uint64_t hash = LongTokens::hash(token);
            if (maybe(hash)) id = long_tokens_.find(token, hash);
        }
        return {id, id};
    }

  private:
    static constexpr size_t kBits = size_t(1) << 21;

    bool maybe(uint64_t hash) const { return filter_[hash % kBits / 64] >> hash % 64 & 1; }

    const PieceTable& short_tokens_;
    const LongTokens& long_tokens_;
    std::vector<uint32_t> two_;  // two bytes → id
    std::vector<uint64_t> filter_;
};

struct EncoderOptions {
    Pattern pattern;
    bool ranked;             // merges follow from the tokens (RankRules); otherwise there is a list of them
    bool whole_piece_first;  // a piece that is a token is that token, whatever the merges say
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
        }
        for (std::string_view token : tokens) borders_.add(token);
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
    }

    // Appends the ids of `size` bytes of valid UTF-8 to `out`. final: the text ends there; otherwise it stops where more
    // text could change what comes. Returns how many bytes are done. readable: how many bytes may be read from `text` on.
    size_t encode(const uint8_t* text, size_t size, bool final, size_t readable, IdBuffer& out) {
        size_t done = 0;
        with_scanner(options_.pattern, text, size, final, [&](auto scanner) {
            size_t ends[scanner.kMost];
            while (const size_t count = scanner.next(ends)) {
                encode_pieces(text, done, ends, count, readable, out);
                done = ends[count - 1];
            }
        });
        return done;
    }

  private:
    static const uint8_t* bytes_of(std::string_view text) { return reinterpret_cast<const uint8_t*>(text.data()); }

    // A piece, or a part of one, that is to be looked up.
    struct Part {
        const uint8_t* text;
        size_t size;
        Prepared prepared;
    };

    static constexpr size_t kParts = 128;

    void encode_pieces(const uint8_t* text, size_t start, const size_t* ends, size_t count, size_t readable, IdBuffer& out) {
        Part parts[kParts];
        size_t waiting = 0;
        auto add = [&](size_t from, size_t end) {
            prepare(parts[waiting++], text + from, end - from, from + 16 <= readable);
            if (waiting == kParts) {
                resolve(parts, waiting, out);
                waiting = 0;
            }
        };
        for (size_t i = 0, from = start; i < count; from = ends[i++]) {
            const size_t end = ends[i];
            // By its first two bytes, as a blank often comes first. For characters of two bytes it does not pay.
            if ((text[from] >= 0xE0 || text[end > from + 1 ? from + 1 : from] >= 0xE0) && end + 3 <= readable)
                borders_.cut(text, from, end, add);
            else
                add(from, end);
        }
        resolve(parts, waiting, out);
    }

    void prepare(Part& part, const uint8_t* text, size_t size, bool readable) {
        part.text = text;
        part.size = size;
        if (size <= kShort) [[likely]] {
            const Key key = key_of(text, size, readable);
            part.prepared = {key, key.hash()};
            short_.prefetch(part.prepared.hash);
        } else if (size <= kLinear) {
            part.prepared.hash = hash_bytes(text, size);
            if (size <= long_.longest()) long_.prefetch(part.prepared.hash);
            if (size <= LongCache::kBytes) cache_.prefetch(part.prepared.hash);
        }
    }

    void resolve(const Part* parts, size_t count, IdBuffer& out) {
        if (!count) return;
        const uint8_t* end = parts[count - 1].text + parts[count - 1].size;
        uint32_t* next = out.room_for(size_t(end - parts[0].text) + LongCache::kIds);
        for (const Part* part = parts; part < parts + count; part++) {
            if (part->size <= kShort) [[likely]] {
                const size_t known = short_.find(part->prepared.key, part->prepared.hash, next);
                next += known ? known : encode_short(part->text, part->size, part->prepared, next);
            } else {
                next += encode_long(part->text, part->size, part->prepared.hash, next);
            }
        }
        out.grown_to(next);
    }

    // A piece of at most 15 bytes that is neither token nor remembered with up to three ids.
    [[gnu::noinline]] size_t encode_short(const uint8_t* piece, size_t size, const Prepared& prepared, uint32_t* ids) {
        const std::string_view view(reinterpret_cast<const char*>(piece), size);
        if (const size_t known = cache_.find(view, prepared.hash, ids)) return known;
        const size_t count = merge(piece, size, ids);
        if (count <= 3)
            short_.remember(prepared.key, prepared.hash, ids, count);
        else if (LongCache::fits(size, count))
            cache_.remember(view, prepared.hash, ids, count);
        return count;
    }

    [[gnu::noinline]] size_t encode_long(const uint8_t* piece, size_t size, uint64_t hash, uint32_t* ids) {
        const std::string_view view(reinterpret_cast<const char*>(piece), size);
        if (size > kLinear) hash = size <= long_.longest() ? hash_bytes(piece, size) : 0;
        const uint32_t token = long_.find(view, hash);
        if (token != kNone) {
            *ids = token;
            return 1;
        }
        if (size > LongCache::kBytes) return merge(piece, size, ids);
        if (const size_t known = cache_.find(view, hash, ids)) return known;
        const size_t count = merge(piece, size, ids);
        if (LongCache::fits(size, count)) cache_.remember(view, hash, ids, count);
        return count;
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

    EncoderOptions options_;
    std::array<uint32_t, 256> byte_ids_;
    size_t linear_ = 0;            // bytes up to which merge_short can be used
    std::vector<uint32_t> sizes_;  // id → bytes of the token
    Borders borders_;
    PieceTable short_;
    LongTokens long_;
    LongCache cache_;
    PairRules pairs_;
    RankRules ranks_;
};

}  // namespace tinylm
