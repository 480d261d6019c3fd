// Counting the distinct pieces of a corpus. No Python here. The readable version is _text/pretokenize.py: count_pieces.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "large_pages.hpp"
#include "merge.hpp"

namespace tinylm {

inline void prefetch([[maybe_unused]] const void* address) {  // into the cache, while other work is done
#if defined(__GNUC__)
    __builtin_prefetch(address);
#endif
}

// Piece → how often, with 64-bit counts. Open addressing; a slot of 24 bytes holds pieces of up to 15 bytes itself,
// longer ones lie one after the other in an array of bytes. Most pieces of real text are found without a second load.
class alignas(128) PieceCounts {  // no cache line of one counter is written by the thread of another
  public:
    // Count `piece`, which lies in a text that ends at `text_end`. Counts are complete after flush().
    void add(std::string_view piece, const char* text_end) {
        if (piece.size() > kInline) return add_long(piece, 1);
        pending_[waiting_] = inline_key(piece, text_end);
        prefetch(&slots_[home(pending_[waiting_])]);
        if (++waiting_ == kBatch) flush();
    }

    void flush() {
        for (size_t i = 0; i < waiting_; i++) add_inline(pending_[i], 1);
        waiting_ = 0;
    }

    // Add what another one has counted.
    void absorb(const PieceCounts& other) {
        for (const Slot& slot : other.slots_) {
            if (slot.count == 0) continue;
            if (slot.key.second >> 56 == kLongTag)
                add_long(other.long_piece(slot.key), slot.count);
            else
                add_inline(slot.key, slot.count);
        }
    }

    // f(piece, count) for each distinct piece of a part of them.
    template <class F>
    void for_each(size_t part, size_t parts, F&& f) const {
        char bytes[16];
        for (size_t at = slots_.size() * part / parts; at < slots_.size() * (part + 1) / parts; at++) {
            const Slot& slot = slots_[at];
            if (slot.count == 0) continue;
            if (slot.key.second >> 56 == kLongTag) {
                f(long_piece(slot.key), slot.count);
            } else {
                if constexpr (std::endian::native == std::endian::little) {
                    std::memcpy(bytes, &slot.key, 16);
                } else {
                    for (size_t i = 0; i < 8; i++) {
                        bytes[i] = char(slot.key.first >> 8 * i);
                        bytes[8 + i] = char(slot.key.second >> 8 * i);
                    }
                }
                f(std::string_view(bytes, slot.key.second >> 56), slot.count);
            }
        }
    }

    size_t distinct() const { return used_; }
    size_t piece_bytes() const { return piece_bytes_; }  // of all distinct pieces together

  private:
    static constexpr size_t kInline = 15;
    static constexpr uint64_t kLongTag = 0xFF;  // where inline pieces have their length
    static constexpr size_t kBatch = 32;        // pieces whose slots are fetched into the cache together

    struct Key {  // up to 15 bytes, the first in the lowest byte, and the length in the last; long: hash, place | tag
        uint64_t first = 0, second = 0;
        bool operator==(const Key&) const = default;
    };
    struct Slot {
        Key key;
        int64_t count = 0;  // 0: free
    };

    static Key inline_key(std::string_view piece, const char* text_end) {
        const size_t size = piece.size();
        uint64_t words[2] = {0, 0};
        if constexpr (std::endian::native == std::endian::little) {
            if (text_end - piece.data() >= 16) {  // load 16 bytes and clear what is behind the piece
                std::memcpy(words, piece.data(), 16);
                if (size < 8) {
                    words[0] &= ~uint64_t(0) >> (64 - 8 * size);
                    words[1] = 0;
                } else {
                    words[1] &= (uint64_t(1) << 8 * (size - 8)) - 1;
                }
                return {words[0], words[1] | uint64_t(size) << 56};
            }
        }
        for (size_t i = 0; i < size; i++) words[i / 8] |= uint64_t(uint8_t(piece[i])) << 8 * (i % 8);
        return {words[0], words[1] | uint64_t(size) << 56};
    }

    size_t home(const Key& key) const {
        const uint64_t hash = key.second >> 56 == kLongTag ? key.first : mix(key.first ^ key.second * 0x9E3779B97F4A7C15);
        return hash & (slots_.size() - 1);
    }

    void add_inline(const Key& key, int64_t count) {
        size_t at = home(key);
        while (slots_[at].count != 0 && slots_[at].key != key) at = next(at);
        if (slots_[at].count != 0) {
            slots_[at].count += count;
        } else {
            slots_[at] = {key, count};
            added(size_t(key.second >> 56));
        }
    }

    void add_long(std::string_view piece, int64_t count) {
        Key key{hash(piece), kLongTag << 56 | long_.size()};
        size_t at = home(key);
        for (; slots_[at].count != 0; at = next(at)) {
            const Key& known = slots_[at].key;
            if (known.first == key.first && known.second >> 56 == kLongTag && long_piece(known) == piece) {
                slots_[at].count += count;
                return;
            }
        }
        const size_t size = piece.size();
        long_.insert(long_.end(), reinterpret_cast<const char*>(&size), reinterpret_cast<const char*>(&size + 1));
        long_.insert(long_.end(), piece.begin(), piece.end());
        slots_[at] = {key, count};
        added(size);
    }

    std::string_view long_piece(const Key& key) const {
        const char* start = &long_[key.second & ~(kLongTag << 56)];
        size_t size;
        std::memcpy(&size, start, sizeof size);
        return {start + sizeof size, size};
    }

    static uint64_t hash(std::string_view piece) {
        uint64_t hash = piece.size(), word = 0;
        for (; piece.size() >= 8; piece.remove_prefix(8)) {
            std::memcpy(&word, piece.data(), 8);
            hash = mix(hash ^ word);
        }
        word = 0;
        std::memcpy(&word, piece.data(), piece.size());
        return mix(hash ^ word);
    }

    size_t next(size_t at) const { return (at + 1) & (slots_.size() - 1); }

    void added(size_t bytes) {
        piece_bytes_ += bytes;
        if (++used_ * 4 < slots_.size() * 3) return;
        LargeVector<Slot> old(2 * slots_.size());
        old.swap(slots_);
        for (const Slot& slot : old) {
            if (slot.count == 0) continue;
            size_t at = home(slot.key);
            while (slots_[at].count != 0) at = next(at);
            slots_[at] = slot;
        }
    }

    LargeVector<Slot> slots_ = LargeVector<Slot>(1 << 12);
    std::vector<char> long_;  // for each long piece: its size, then its bytes
    size_t used_ = 0, piece_bytes_ = 0;
    Key pending_[kBatch];
    size_t waiting_ = 0;
};

// Where the first byte stands that is no text: not UTF-8, or a zero. The size of `text` if there is none.
inline size_t first_not_text(std::string_view text) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
    const size_t size = text.size();
    size_t at = 0;
    while (at < size) {
        if (size - at >= 8) {  // eight characters of ASCII at once
            uint64_t word;
            std::memcpy(&word, bytes + at, 8);
            if (!((word | (word - 0x0101010101010101)) & 0x8080808080808080)) {
                at += 8;
                continue;
            }
        }
        const uint8_t first = bytes[at];
        if (first < 0x80) {
            if (first == 0) return at;
            at++;
            continue;
        }
        // The second byte's range says what is too long, a surrogate, or above U+10FFFF (Unicode, table 3-7).
        const size_t length = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
        if (length == 0 || size - at < length) return at;
        const uint8_t least = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
        const uint8_t most = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
        if (bytes[at + 1] < least || bytes[at + 1] > most) return at;
        for (size_t i = 2; i < length; i++)
            if ((bytes[at + i] & 0xC0) != 0x80) return at;
        at += length;
    }
    return size;
}

}  // namespace tinylm
