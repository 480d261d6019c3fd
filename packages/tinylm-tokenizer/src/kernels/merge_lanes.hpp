// Byte-pair merging of up to 16 pieces side by side, one in each lane of AVX-512's registers. No Python here. Each lane
// does what merge.hpp's merge_short does; byte_bpe_unknown.hpp collects the pieces, byte_bpe_ranks.hpp has the rules.
//
// A piece alone waits: each merge asks the vocabulary about two more pairs, mostly far away in memory, and nobody can guess
// which pair is next. Here all lanes merge their lowest pair in one step, so that 16 pieces wait for memory once, and
// nothing is guessed but how many steps there are.
//
// Row k of an array holds a number for position k of each piece. A part is known by the position of its first byte, and
// bits say where parts start. What joined bytes hash to follows from hashes of the pieces' beginnings (a polynomial, as in
// Karp and Rabin, 1987), and a table of 4 bytes a token, small enough to stay near, says which token that is: nearly
// always. The ids are exact all the same:
//   - every merge that is carried out is compared with the token's bytes, and a piece with one that is none (1 of 20,000)
//     is given back, to be merged by itself;
//   - a pair that is taken for a token and never merged has changed nothing;
//   - no token is missed: those that cannot be told apart have the entry of the lowest rank among them, which merges no
//     later than it should, and then is compared.
#pragma once

#include "byte_bpe_table.hpp"
#include "cpu.hpp"

namespace tinylm {

// A piece that is to be merged: its bytes, with anything behind them, and where its ids go.
struct LanePiece {
    static constexpr size_t kMost = 31;  // bytes

    alignas(32) uint8_t bytes[kMost + 1];
    uint32_t size;
    uint32_t count;  // of ids; 0: it has to be merged by itself
    uint32_t* ids;   // room for one a byte
};

#if defined(TINYLM_X86)

#define TINYLM_LANES [[gnu::target("avx512f,avx512bw,avx512cd")]]

class Lanes {
  public:
    static constexpr size_t kWidth = 16;

    // The tokens of a vocabulary of ranks (byte_bpe_ranks.hpp), none twice. two: the id of two bytes, the first one's the
    // lower half of its place. What it gets must stay where it is. `ready` is false where this cannot be used.
    void build(const std::vector<std::string_view>& tokens, const std::vector<uint32_t>& ids, const uint32_t* byte_ids,
               const uint32_t* two, const PieceTable& short_tokens, const LongTokens& long_tokens) {
        byte_ids_ = byte_ids, two_ = two, short_tokens_ = &short_tokens, long_tokens_ = &long_tokens;
        const size_t numbers = size_t(*std::max_element(ids.begin(), ids.end())) + 1;
        if (!kAvx512 || numbers >= kNobody) return;
        for (bits_ = 12; size_t(2) << bits_ < 5 * tokens.size();) bits_++;  // half full there would be no room for some
        const size_t places = size_t(1) << bits_;
        memory_ = std::make_unique<Slots<std::byte>>(places * sizeof *table_ + numbers * sizeof *low_);
        table_ = reinterpret_cast<uint32_t*>(&(*memory_)[0]);
        low_ = reinterpret_cast<uint64_t*>(&(*memory_)[places * sizeof *table_]);
        powers_[0] = 1;
        for (size_t i = 1; i < 32; i++) powers_[i] = powers_[i - 1] * kBase;
        // Each place is a wait for memory, so both are asked for some tokens before they are needed.
        constexpr size_t ahead = 16;
        uint32_t hashes[ahead] = {};
        for (size_t i = 0; i < tokens.size() + ahead; i++) {
            uint32_t& hash = hashes[i % ahead];
            if (const size_t before = i - ahead; i >= ahead && is_mine(tokens[before]) && !add(hash, ids[before])) return;
            if (i >= tokens.size() || !is_mine(tokens[i])) continue;
            const size_t size = tokens[i].size();
            const Key key = key_of(reinterpret_cast<const uint8_t*>(tokens[i].data()), std::min(size, kShort), true);
            low_[ids[i]] = size < 8 ? key.low | marked(size) : key.low;
            hash = hash_of(tokens[i]);
            __builtin_prefetch(&table_[hash >> (32 - bits_)]);
            __builtin_prefetch(&table_[other_place(hash >> (32 - bits_), hash & kTags)]);
        }
        ready_ = true;
    }

    bool ready() const { return ready_; }

    // Merges pieces of at least 2 bytes, which come by size, the longest one last.
    void merge(LanePiece* const* pieces, size_t count) const {
        Group groups[kGroups];
        for (size_t done = 0; done < count; done += kGroups * kWidth) {
            size_t used = 0;
            for (size_t i = done; i < count && used < kGroups; i += kWidth)
                start(groups[used++], pieces + i, std::min(count - i, kWidth));
            for (bool going = true; going;) {
                going = false;
                for (size_t i = 0; i < used; i++) choose(groups[i]);
                for (size_t i = 0; i < used; i++)
                    if (groups[i].active) carry_out(groups[i]), going = true;
            }
            for (size_t i = 0; i < used; i++) finish(groups[i]);
        }
    }

  private:
    static constexpr size_t kGroups = 4;               // while one waits for memory, the others go on
    static constexpr size_t kMost = LanePiece::kMost;
    static constexpr size_t kStride = kMost + 1 + 16;  // bytes from lane to lane: so many behind a piece are read
    static constexpr size_t kFewRows = 14;             // up to so many, changing all is quicker than writing here and there
    static constexpr uint32_t kNobody = (1 << 18) - 1;
    static constexpr int kTagBits = 14;
    static constexpr uint32_t kTags = (1 << kTagBits) - 1;
    static constexpr uint32_t kBase = 0x9E3779B1, kFirst = 0x85EBCA6B, kSecond = 0x2C1B3C6D, kOther = 0x5BD1E995;

    // kWidth pieces. Rows of numbers, one for each lane.
    struct alignas(64) Group {
        uint8_t bytes[kWidth * kStride];
        uint32_t ranks[kMost][kWidth];       // rank << 5 | position, of the pair of this part and the next one
        uint32_t hashes[kMost + 1][kWidth];  // of the bytes before
        uint32_t ids[kMost][kWidth];         // of the parts that were merged
        __m512i starts;                      // bits: where parts start, and one for the end
        __mmask16 wrong;                     // lanes with a merge that is none
        // Of one step: the lanes that merge; where the part that grows, the one it takes in, the one before it and the one
        // behind both start; what it becomes; where the table has the two new pairs, and their tags.
        __mmask16 active, has_after, has_previous;
        __m512i left, right, previous, after, id, tag_after, tag_previous;
        uint32_t places[4][kWidth], new_ids[kWidth];
        LanePiece* const* pieces;
        size_t count, longest;
    };

    TINYLM_LANES void start(Group& group, LanePiece* const* pieces, size_t count) const {
        alignas(64) uint32_t sizes[kWidth] = {};
        for (size_t i = 0; i < count; i++) {
            std::memcpy(group.bytes + i * kStride, pieces[i]->bytes, sizeof pieces[i]->bytes);
            sizes[i] = pieces[i]->size;
        }
        const size_t longest = sizes[count - 1];
        group.pieces = pieces, group.count = count, group.longest = longest, group.wrong = 0;
        const __m512i size = _mm512_load_si512(sizes);
        const __m512i bytes = _mm512_mullo_epi32(lane(), _mm512_set1_epi32(kStride));
        __m512i hash = _mm512_setzero_si512();
        _mm512_store_si512(group.hashes[0], hash);
        for (size_t i = 0; i < longest; i++) {
            const __m512i pair =
                _mm512_and_si512(_mm512_i32gather_epi32(bytes, group.bytes + i, 1), _mm512_set1_epi32(0xFFFF));
            const __m512i byte = _mm512_add_epi32(_mm512_and_si512(pair, _mm512_set1_epi32(0xFF)), _mm512_set1_epi32(1));
            hash = _mm512_add_epi32(_mm512_mullo_epi32(hash, _mm512_set1_epi32(int(kBase))), byte);
            _mm512_store_si512(group.hashes[i + 1], hash);
            if (i + 1 == longest) break;
            const __mmask16 inside = _mm512_cmplt_epu32_mask(_mm512_set1_epi32(int(i) + 1), size);
            const __m512i id = _mm512_mask_i32gather_epi32(_mm512_set1_epi32(-1), inside, pair, two_, 4);
            _mm512_store_si512(group.ranks[i], _mm512_or_si512(_mm512_slli_epi32(id, 5), _mm512_set1_epi32(int(i))));
        }
        group.starts = _mm512_sub_epi32(_mm512_sllv_epi32(_mm512_set1_epi32(2), size), _mm512_set1_epi32(1));
    }

    // Finds the lowest pair of each lane, and asks for the memory that carry_out needs.
    TINYLM_LANES void choose(Group& group) const {
        const __m512i one = _mm512_set1_epi32(1), none = _mm512_set1_epi32(int(kNobody << 5));
        __m512i lowest = none, other = none;
        size_t row = 0;
        for (; row + 2 < group.longest; row += 2) {
            lowest = _mm512_min_epu32(lowest, _mm512_load_si512(group.ranks[row]));
            other = _mm512_min_epu32(other, _mm512_load_si512(group.ranks[row + 1]));
        }
        if (row + 1 < group.longest) lowest = _mm512_min_epu32(lowest, _mm512_load_si512(group.ranks[row]));
        lowest = _mm512_min_epu32(lowest, other);
        const __mmask16 active = _mm512_cmplt_epu32_mask(lowest, none) & ~group.wrong;
        group.active = active;
        if (!active) return;
        const __m512i left = _mm512_and_si512(lowest, _mm512_set1_epi32(31));
        const __m512i from_right = _mm512_and_si512(group.starts, _mm512_sllv_epi32(_mm512_set1_epi32(-2), left));
        const __m512i from_after = without_lowest(from_right), from_end = without_lowest(from_after);
        const __m512i before = _mm512_and_si512(group.starts, _mm512_sub_epi32(_mm512_sllv_epi32(one, left), one));
        const __m512i right_bit = _mm512_xor_si512(from_right, from_after);
        group.starts = _mm512_mask_xor_epi32(group.starts, active, group.starts, right_bit);
        group.has_after = _mm512_mask_test_epi32_mask(active, from_end, from_end);
        group.has_previous = _mm512_mask_test_epi32_mask(active, before, before);
        group.left = left, group.right = highest_bit(right_bit);
        group.previous = highest_bit(before);
        group.after = highest_bit(_mm512_xor_si512(from_after, from_end));
        group.id = _mm512_srli_epi32(lowest, 5);
        const __m512i end = highest_bit(_mm512_xor_si512(from_end, without_lowest(from_end)));
        group.tag_after = place(group, group.has_after, left, end, 0);
        group.tag_previous = place(group, group.has_previous, group.previous, group.after, 2);
        _mm512_store_si512(group.new_ids, group.id);
        for (size_t i = 0; i < kWidth; i++) {
            __builtin_prefetch(&table_[group.places[0][i]]);
            __builtin_prefetch(&table_[group.places[2][i]]);
            __builtin_prefetch(&low_[group.new_ids[i]]);
        }
    }

    // The tags of the bytes from `start` to `end`; their places go to group.places[first] and the row behind it.
    TINYLM_LANES __m512i place(Group& group, __mmask16 mask, __m512i start, __m512i end, size_t first) const {
        const __m512i zero = _mm512_setzero_si512();
        const __m512i to_start = _mm512_mask_i32gather_epi32(zero, mask, at(start), group.hashes, 4);
        const __m512i to_end = _mm512_mask_i32gather_epi32(zero, mask, at(end), group.hashes, 4);
        const __m512i power = _mm512_permutex2var_epi32(_mm512_loadu_si512(powers_), _mm512_sub_epi32(end, start),
                                                        _mm512_loadu_si512(powers_ + 16));
        __m512i hash = _mm512_sub_epi32(to_end, _mm512_mullo_epi32(to_start, power));
        hash = _mm512_mullo_epi32(hash, _mm512_set1_epi32(int(kFirst)));
        hash = _mm512_mullo_epi32(_mm512_xor_si512(hash, _mm512_srli_epi32(hash, 15)), _mm512_set1_epi32(int(kSecond)));
        const __m512i tag = _mm512_and_si512(hash, _mm512_set1_epi32(int(kTags)));
        const __m512i place = _mm512_srl_epi32(hash, _mm_cvtsi32_si128(32 - bits_));
        const __m512i step = _mm512_srli_epi32(_mm512_mullo_epi32(tag, _mm512_set1_epi32(int(kOther))), 3);
        _mm512_store_si512(group.places[first], place);
        _mm512_store_si512(group.places[first + 1], _mm512_and_si512(_mm512_xor_si512(place, step),
                                                                     _mm512_set1_epi32((1 << bits_) - 1)));
        return tag;
    }

    // Merges what was chosen.
    TINYLM_LANES void carry_out(Group& group) const {
        const __m512i none = _mm512_set1_epi32(int(kNobody << 5));
        const __mmask16 active = group.active;
        const __m512i lane_bytes = _mm512_mullo_epi32(lane(), _mm512_set1_epi32(kStride));
        group.wrong |= not_the_token(active, group.bytes, _mm512_add_epi32(lane_bytes, group.left),
                                     _mm512_sub_epi32(group.after, group.left), group.id);
        const __m512i with_after = find(group, group.has_after, group.tag_after, group.left, 0);
        const __m512i with_previous = find(group, group.has_previous, group.tag_previous, group.previous, 2);
        if (group.longest <= kFewRows) {
            for (size_t i = 0; i + 1 < group.longest; i++) {
                const __m512i here = _mm512_set1_epi32(int(i));
                __m512i rank = _mm512_load_si512(group.ranks[i]);
                rank = _mm512_mask_mov_epi32(rank, _mm512_mask_cmpeq_epi32_mask(active, here, group.right), none);
                const __mmask16 is_left = _mm512_mask_cmpeq_epi32_mask(active, here, group.left);
                rank = _mm512_mask_mov_epi32(rank, is_left, with_after);
                _mm512_mask_store_epi32(group.ids[i], is_left, group.id);
                rank = _mm512_mask_mov_epi32(rank, _mm512_mask_cmpeq_epi32_mask(group.has_previous, here, group.previous),
                                             with_previous);
                _mm512_store_si512(group.ranks[i], rank);
            }
        } else {
            _mm512_mask_i32scatter_epi32(group.ids, active, at(group.left), group.id, 4);
            _mm512_mask_i32scatter_epi32(group.ranks, group.has_after, at(group.right), none, 4);  // the last has no pair
            _mm512_mask_i32scatter_epi32(group.ranks, active, at(group.left), with_after, 4);
            _mm512_mask_i32scatter_epi32(group.ranks, group.has_previous, at(group.previous), with_previous, 4);
        }
    }

    // rank << 5 | start of the token with that tag at one of two places; what is not less than kNobody << 5: there is none.
    TINYLM_LANES __m512i find(const Group& group, __mmask16 mask, __m512i tag, __m512i start, size_t first) const {
        const __m512i zero = _mm512_setzero_si512(), tags = _mm512_set1_epi32(int(kTags));
        const __m512i one = _mm512_mask_i32gather_epi32(zero, mask, _mm512_load_si512(group.places[first]), table_, 4);
        const __m512i second = _mm512_load_si512(group.places[first + 1]);
        const __m512i other = _mm512_mask_i32gather_epi32(zero, mask, second, table_, 4);
        const __mmask16 is_one = _mm512_mask_cmpeq_epi32_mask(mask, _mm512_and_si512(one, tags), tag);
        const __mmask16 is_other = _mm512_mask_cmpeq_epi32_mask(mask, _mm512_and_si512(other, tags), tag);
        __m512i id = _mm512_maskz_srli_epi32(is_other, other, kTagBits);
        id = _mm512_sub_epi32(_mm512_mask_srli_epi32(id, is_one, one, kTagBits), _mm512_set1_epi32(1));
        return _mm512_or_si512(_mm512_slli_epi32(id, 5), start);
    }

    TINYLM_LANES void finish(const Group& group) const {
        alignas(64) uint32_t starts[kWidth];
        _mm512_store_si512(starts, group.starts);
        for (size_t i = 0; i < group.count; i++) {
            LanePiece& piece = *group.pieces[i];
            uint32_t* out = piece.ids;
            for (uint32_t rest = starts[i]; rest & (rest - 1);) {
                const int start = std::countr_zero(rest);
                rest &= rest - 1;
                const bool alone = rest >> start & 2;
                *out++ = alone ? byte_ids_[group.bytes[i * kStride + size_t(start)]] : group.ids[start][i];
            }
            piece.count = group.wrong >> i & 1 ? 0 : uint32_t(out - piece.ids);
        }
    }

    // A token of 8 bytes and more could be taken for one that `marked` marks, if its eighth byte were none of UTF-8; no text
    // has such a token.
    static bool is_mine(std::string_view token) {
        return token.size() > 1 && token.size() <= kMost && (token.size() < 8 || uint8_t(token[7]) < 0xF8);
    }

    static uint32_t hash_of(std::string_view text) {
        uint32_t hash = 0;
        for (char byte : text) hash = hash * kBase + uint8_t(byte) + 1;  // so that a first NUL counts
        hash *= kFirst;
        return (hash ^ hash >> 15) * kSecond;
    }

    uint32_t other_place(uint32_t place, uint32_t tag) const {
        return (place ^ tag * kOther >> 3) & ((uint32_t(1) << bits_) - 1);
    }

    // A token has one of two places (Pagh and Rodler's cuckoo hashing; the second from the first and the tag, so that an
    // entry can be moved without its token: Fan et al., 2014). False: there is no room.
    bool add(uint32_t hash, uint32_t id) {
        const uint32_t tag = hash & kTags, first = hash >> (32 - bits_), second = other_place(first, tag);
        for (uint32_t place : {first, second}) {
            if (!table_[place] || (table_[place] & kTags) != tag) continue;
            table_[place] = std::min(table_[place], entry_of(id, tag));  // of those that look alike the lowest
            return true;
        }
        uint32_t place = table_[first] ? second : first, entry = entry_of(id, tag);
        for (int moves = 0; moves < 500; moves++) {
            std::swap(entry, table_[place]);
            if (!entry) return true;
            place = other_place(place, entry & kTags);
        }
        return false;
    }

    // 0: nothing is there.
    static uint32_t entry_of(uint32_t id, uint32_t tag) { return (id + 1) << kTagBits | tag; }

    // The highest byte of a key of fewer than 8 bytes; no text in UTF-8 has it.
    static uint64_t marked(size_t size) { return uint64_t(0xF8 | size) << 56; }

    TINYLM_LANES static __m512i without_lowest(__m512i bits) {
        return _mm512_and_si512(bits, _mm512_sub_epi32(bits, _mm512_set1_epi32(1)));
    }

    TINYLM_LANES static __m512i highest_bit(__m512i bits) {
        return _mm512_sub_epi32(_mm512_set1_epi32(31), _mm512_lzcnt_epi32(bits));
    }

    // Where a row's number for each lane is.
    TINYLM_LANES static __m512i at(__m512i row) { return _mm512_add_epi32(_mm512_slli_epi32(row, 4), lane()); }

    TINYLM_LANES static __m512i lane() {
        return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    }

    // The lanes of `mask` whose `size` bytes from `text` on are not those of the token `id`.
    TINYLM_LANES __mmask16 not_the_token(__mmask16 mask, const uint8_t* bytes, __m512i text, __m512i size,
                                         __m512i id) const {
        const __mmask8 low = differ(__mmask8(mask), bytes, _mm512_castsi512_si256(text), _mm512_castsi512_si256(size),
                                    _mm512_castsi512_si256(id));
        const __mmask8 high = differ(__mmask8(mask >> 8), bytes, _mm512_extracti64x4_epi64(text, 1),
                                     _mm512_extracti64x4_epi64(size, 1), _mm512_extracti64x4_epi64(id, 1));
        const __mmask16 others = __mmask16(low | high << 8);
        const __mmask16 many = _mm512_mask_cmpge_epu32_mask(mask, size, _mm512_set1_epi32(8));
        return many ? others | not_the_long_token(many, bytes, text, size, id) : others;
    }

    // The same of 8 lanes, as far as the first 8 bytes tell.
    TINYLM_LANES __mmask8 differ(__mmask8 mask, const uint8_t* bytes, __m256i text, __m256i size, __m256i id) const {
        const __m512i zero = _mm512_setzero_si512(), one = _mm512_set1_epi64(1), length = _mm512_cvtepu32_epi64(size);
        const __m512i kept = _mm512_sub_epi64(_mm512_sllv_epi64(one, _mm512_slli_epi64(length, 3)), one);
        const __m512i mark = _mm512_slli_epi64(_mm512_or_si512(length, _mm512_set1_epi64(0xF8)), 56);
        __m512i part = _mm512_and_si512(_mm512_mask_i32gather_epi64(zero, mask, text, bytes, 1), kept);
        part = _mm512_mask_or_epi64(part, _mm512_cmplt_epu64_mask(length, _mm512_set1_epi64(8)), part, mark);
        return _mm512_mask_cmpneq_epu64_mask(mask, part, _mm512_mask_i32gather_epi64(zero, mask, id, low_, 8));
    }

    // The same for 8 bytes and more, whose first 8 do not tell.
    TINYLM_LANES [[gnu::noinline]] __mmask16 not_the_long_token(__mmask16 mask, const uint8_t* bytes, __m512i text,
                                                                __m512i size, __m512i id) const {
        alignas(64) uint32_t texts[kWidth], sizes[kWidth], ids[kWidth];
        _mm512_store_si512(texts, text), _mm512_store_si512(sizes, size), _mm512_store_si512(ids, id);
        __mmask16 others = 0;
        for (unsigned rest = mask; rest; rest &= rest - 1) {
            const int i = std::countr_zero(rest);
            others |= __mmask16((token_of(bytes + texts[i], sizes[i]) != ids[i]) << i);
        }
        return others;
    }

    uint32_t token_of(const uint8_t* text, size_t size) const {
        if (size <= kShort) {
            const Key key = key_of(text, size, true);
            return short_tokens_->find_token(key, key.hash());
        }
        const std::string_view view(reinterpret_cast<const char*>(text), size);
        return long_tokens_->find(view, LongTokens::hash(view));
    }

    bool ready_ = false;
    int bits_ = 0;
    uint32_t powers_[32];
    std::unique_ptr<Slots<std::byte>> memory_;
    uint64_t* low_;    // id → the token's first 8 bytes
    uint32_t* table_;  // entries
    const uint32_t *byte_ids_, *two_;
    const PieceTable* short_tokens_;
    const LongTokens* long_tokens_;
};

#undef TINYLM_LANES

#else

class Lanes {  // never ready
  public:
    static constexpr size_t kWidth = 16;
    void build(const std::vector<std::string_view>&, const std::vector<uint32_t>&, const uint32_t*, const uint32_t*,
               const PieceTable&, const LongTokens&) {}
    bool ready() const { return false; }
    void merge(LanePiece* const*, size_t) const {}
};

#endif

}  // namespace tinylm
