// Where the encoder looks pieces up: one open-addressing table that is vocabulary and cache at once. No Python here.
//
// A key of up to 15 bytes stands in the slot itself, and so do up to three ids: half a cache line answers for nearly
// every piece of real text, and the two halves of a line are one place, looked at together. What does not fit a slot is
// in a store that the slot points into (byte_bpe_store.hpp). Tokens of more than 15 bytes have a table of their own
// (LongTokens).
//
// Threads share it without waiting. The vocabulary never changes. A cached slot is guarded by a version that is odd
// while it is being written (a "seqlock"): who reads looks at the version before and after, and takes the piece for
// unknown if it was not the same even number. Only one thread writes at a time; the others do not wait, they just do not
// store what they found.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>
#include <vector>

#include "byte_bpe_store.hpp"
#include "merge.hpp"

namespace tinylm {

constexpr size_t kShort = 15;  // bytes of a key that stands in its slot

// Zeroed memory for a table that is read all over: in large pages where the system has them, since with small ones nearly
// every look-up would also have to find its page.
template <class Slot>
class Slots {
  public:
    explicit Slots(size_t count) {
        constexpr size_t large = size_t(2) << 20;
        size_t size = count * sizeof(Slot);
        const size_t alignment = size < large / 2 ? std::max(alignof(Slot), size_t(64)) : large;  // of a cache line
        if (alignment == large) size = (size + large - 1) / large * large;
        memory_.reset(static_cast<std::byte*>(::operator new(size, std::align_val_t(alignment))));
        memory_.get_deleter().alignment = alignment;
#if defined(__linux__)
        if (alignment == large) madvise(memory_.get(), size, MADV_HUGEPAGE);
#endif
        for (size_t i = 0; i < count; i++) new (memory_.get() + i * sizeof(Slot)) Slot{};
    }

    Slot& operator[](size_t at) const { return reinterpret_cast<Slot*>(memory_.get())[at]; }

  private:
    struct Free {
        size_t alignment = 0;
        void operator()(std::byte* memory) const { ::operator delete(memory, std::align_val_t(alignment)); }
    };

    std::unique_ptr<std::byte, Free> memory_;
};

// Up to 15 bytes and their number as 16 bytes that can be compared.
struct Key {
    uint64_t low = 0, high = 0;  // the number is in the highest byte of `high`, which therefore is never 0

    bool operator==(const Key&) const = default;

    uint64_t hash() const {  // a 64 × 64 → 128 bit product folded: every bit of the key moves every bit of the hash
        const uint64_t a = low ^ 0x9E3779B97F4A7C15, b = high ^ 0xD6E8FEB86659FD93;
#if defined(__SIZEOF_INT128__)
        const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
        return uint64_t(product) ^ uint64_t(product >> 64);
#else
        return mix(a ^ mix(b));
#endif
    }
};

// The key of text[0..size), size ≤ 15. readable: whether 16 bytes may be read there.
inline Key key_of(const uint8_t* text, size_t size, bool readable) {
    Key key;
    if (std::endian::native == std::endian::little && readable) [[likely]] {
        static constexpr auto kMasks = [] {
            struct {
                uint64_t low[16], high[16];
            } masks{};
            for (int n = 0; n < 16; n++) {
                masks.low[n] = n >= 8 ? ~uint64_t(0) : (uint64_t(1) << (8 * n)) - 1;
                masks.high[n] = n <= 8 ? 0 : (uint64_t(1) << (8 * (n - 8))) - 1;
            }
            return masks;
        }();
        std::memcpy(&key.low, text, 8);
        std::memcpy(&key.high, text + 8, 8);
        key.low &= kMasks.low[size];
        key.high &= kMasks.high[size];
    } else {
        uint8_t bytes[16] = {};
        std::memcpy(bytes, text, size);
        for (int i = 7; i >= 0; i--) key.low = key.low << 8 | bytes[i], key.high = key.high << 8 | bytes[8 + i];
    }
    key.high |= uint64_t(size) << 56;
    return key;
}

inline uint64_t hash_bytes(const uint8_t* text, size_t size) {
    uint64_t hash = size;
    for (; size > kShort; text += kShort, size -= kShort) hash = mix(hash ^ key_of(text, kShort, true).hash());
    return mix(hash ^ key_of(text, size, false).hash());
}

// Of more than 15 bytes: their hash and their number, which tell them apart nearly always.
inline Key long_key(uint64_t hash, size_t size) { return {hash, uint64_t(0xFF) << 56 | size}; }

// What is looked up: a key, its hash, and the bytes themselves.
struct Piece {
    Key key;
    uint64_t hash;
    const uint8_t* bytes;
    size_t size;

    Piece(Key key, const uint8_t* bytes, size_t size)
        : key(key), hash(size <= kShort ? key.hash() : key.low), bytes(bytes), size(size) {}
};

class PieceTable {
    // rest: third id (32 bits), number of ids (2), kToken, kBusy, version (28). Without ids, the rest is in the store.
    static constexpr uint64_t kToken = uint64_t(1) << 34, kBusy = uint64_t(1) << 35, kVersion = uint64_t(1) << 36;

    struct alignas(32) Slot {
        std::atomic<uint64_t> low{0}, high{0}, ids{0}, rest{0};  // high 0: the slot is empty

        bool holds(Key key) const {
            return !((low.load(std::memory_order_relaxed) ^ key.low) | (high.load(std::memory_order_relaxed) ^ key.high));
        }
    };

  public:
    static constexpr size_t kInSlot = 3;        // ids
    static constexpr size_t kCached = 110'000;  // pieces that are remembered at least: the words of some MB of a language

    explicit PieceTable(size_t tokens) : mask_(slots_for(tokens) - 2), room_((mask_ + 2) * 5 / 8), slots_(mask_ + 2) {}

    // Of the vocabulary; before anybody reads. The first of two equal keys stands.
    void add_token(Key key, uint64_t hash, uint32_t id) {
        Slot& slot = place(key, hash);
        if (slot.high.load(std::memory_order_relaxed)) return;
        write(slot, key, {id, 0, 0}, uint64_t(1) << 32 | kToken);
        used_++;
    }

    // Where a piece is looked for first: two slots that share a cache line.
    class Place {
        friend PieceTable;
        const Slot* pair;
    };

    Place prefetch(uint64_t hash) const {
        Place place;
        place.pair = &slots_[hash & mask_];
        __builtin_prefetch(place.pair);
        return place;
    }

    // Writes the ids of a known piece to `ids` (kInSlot of them, whatever it finds) and returns how many there are. 0:
    // look_further may know more. Both slots of the place are looked at, whichever it is, as no processor could guess that.
    static size_t find(Key key, Place place, uint32_t* ids) {
        const Slot* pair = place.pair;
        const uint64_t rests[2] = {pair[0].rest.load(std::memory_order_acquire),
                                   pair[1].rest.load(std::memory_order_acquire)};
        const bool first = pair[0].holds(key), second = pair[1].holds(key);
        const Slot& slot = pair[second];
        const uint64_t rest = second ? rests[1] : rests[0];
        const uint64_t two = slot.ids.load(std::memory_order_relaxed);
        ids[0] = uint32_t(two), ids[1] = uint32_t(two >> 32), ids[2] = uint32_t(rest);
        std::atomic_thread_fence(std::memory_order_acquire);
        const bool same = !((slot.rest.load(std::memory_order_relaxed) ^ rest) | (rest & kBusy));
        return same & (first | second) ? rest >> 32 & 3 : 0;
    }

    // The same for a piece wherever it stands, in the store too. 0: not known. `ids`: room for kInSlot and for one a byte.
    size_t look_further(const Piece& piece, uint32_t* ids) const {
        for (size_t at = piece.hash & mask_;; at = (at + 2) & mask_) {
            for (size_t i = 0; i < 2; i++) {
                const Slot& slot = slots_[at + i];
                const uint64_t rest = slot.rest.load(std::memory_order_acquire);
                if (!slot.high.load(std::memory_order_relaxed)) return 0;
                if (!slot.holds(piece.key)) continue;
                const uint64_t two = slot.ids.load(std::memory_order_relaxed);
                std::atomic_thread_fence(std::memory_order_acquire);
                if ((rest & kBusy) || slot.rest.load(std::memory_order_relaxed) != rest) return 0;
                if (const size_t count = rest >> 32 & 3) {
                    ids[0] = uint32_t(two), ids[1] = uint32_t(two >> 32), ids[2] = uint32_t(rest);
                    return count;
                }
                const size_t count = uint32_t(rest);
                return store_.read(two, piece.bytes, stored_bytes(piece), ids, count) ? count : 0;
            }
        }
    }

    // The id of a token; kNone: there is none. Cached pieces do not count.
    uint32_t find_token(Key key, uint64_t hash) const {
        for (size_t at = hash & mask_;; at = (at + 2) & mask_) {
            for (size_t i = 0; i < 2; i++) {
                const Slot& slot = slots_[at + i];
                if (!(slot.rest.load(std::memory_order_relaxed) & kToken)) return kNone;  // tokens stand before the cached
                if (slot.holds(key)) return uint32_t(slot.ids.load(std::memory_order_relaxed));
            }
        }
    }

    // Remember the ids of a piece that was not known. When the table is full the oldest cached piece goes, roughly.
    void remember(const Piece& piece, const uint32_t* ids, size_t count) {
        if (stored_bytes(piece) > IdStore::kBytes || writing_.test_and_set(std::memory_order_acquire)) return;
        Slot& slot = place(piece.key, piece.hash);
        if (!slot.high.load(std::memory_order_relaxed)) {
            if (used_ < room_)
                used_++;
            else
                forget_one();
        }
        if (count <= kInSlot && piece.size <= kShort) {
            write(slot, piece.key, {ids[0], count > 1 ? ids[1] : 0, count > 2 ? ids[2] : 0}, uint64_t(count) << 32);
        } else {
            const uint64_t where = store_.add(piece.bytes, stored_bytes(piece), ids, count);
            write(slot, piece.key, {uint32_t(where), uint32_t(where >> 32), uint32_t(count)}, 0);
        }
        writing_.clear(std::memory_order_release);
    }

  private:
    static size_t slots_for(size_t tokens) {
        size_t slots = size_t(1) << 12;
        while (5 * slots < 8 * (tokens + kCached)) slots *= 2;
        return slots;
    }

    // A short key is all of its piece; of a long one only the hash.
    static size_t stored_bytes(const Piece& piece) { return piece.size <= kShort ? 0 : piece.size; }

    Slot& place(Key key, uint64_t hash) {
        for (size_t at = hash & mask_;; at = (at + 2) & mask_)
            for (size_t i = 0; i < 2; i++)
                if (Slot& slot = slots_[at + i]; !slot.high.load(std::memory_order_relaxed) || slot.holds(key)) return slot;
    }

    static void write(Slot& slot, Key key, std::array<uint32_t, kInSlot> ids, uint64_t flags) {
        const uint64_t version = (slot.rest.load(std::memory_order_relaxed) & ~(kVersion - 1)) + kVersion;
        slot.rest.store(version | kBusy, std::memory_order_relaxed);
        std::atomic_thread_fence(std::memory_order_release);
        slot.low.store(key.low, std::memory_order_relaxed);
        slot.high.store(key.high, std::memory_order_relaxed);
        slot.ids.store(ids[0] | uint64_t(ids[1]) << 32, std::memory_order_relaxed);
        slot.rest.store(ids[2] | flags | version, std::memory_order_release);
    }

    // Empties the next cached slot. Tokens were there first, so no token is behind it on the way from its place.
    void forget_one() {
        for (;; hand_ = (hand_ + 1) & (mask_ | 1)) {
            Slot& slot = slots_[hand_];
            if (!slot.high.load(std::memory_order_relaxed) || (slot.rest.load(std::memory_order_relaxed) & kToken)) continue;
            write(slot, Key{}, {}, 0);
            return;
        }
    }

    size_t mask_;  // of a place: two slots that share a cache line
    size_t room_, used_ = 0, hand_ = 0;
    Slots<Slot> slots_;
    IdStore store_;
    std::atomic_flag writing_;
};

// Tokens of more than 15 bytes → id.
class LongTokens {
  public:
    // token_of(id): the bytes, which must stay where they are.
    void build(const std::vector<std::string_view>& tokens, const std::vector<uint32_t>& ids) {
        size_t slots = 16;
        while (slots < 2 * tokens.size()) slots *= 2;
        slots_.assign(slots, {});
        for (size_t i = 0; i < tokens.size(); i++) {
            longest_ = std::max(longest_, tokens[i].size());
            Slot& slot = slots_[place(tokens[i], hash(tokens[i]))];
            if (slot.id == kNone) slot = {tokens[i], ids[i]};
        }
    }

    static uint64_t hash(std::string_view token) {
        return hash_bytes(reinterpret_cast<const uint8_t*>(token.data()), token.size());
    }

    void prefetch(uint64_t hash) const { __builtin_prefetch(&slots_[hash & (slots_.size() - 1)]); }

    uint32_t find(std::string_view token, uint64_t hash) const {
        return token.size() > longest_ ? kNone : slots_[place(token, hash)].id;
    }

    size_t longest() const { return longest_; }

  private:
    struct Slot {
        std::string_view token;
        uint32_t id = kNone;
    };

    size_t place(std::string_view token, uint64_t hash) const {
        size_t at = hash & (slots_.size() - 1);
        while (slots_[at].id != kNone && slots_[at].token != token) at = (at + 1) & (slots_.size() - 1);
        return at;
    }

    std::vector<Slot> slots_ = std::vector<Slot>(16);
    size_t longest_ = 0;
};

}  // namespace tinylm
