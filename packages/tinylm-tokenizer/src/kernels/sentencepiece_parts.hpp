// What sentencepiece.hpp is made of: the ids of a text, the places where it may be cut, the cache of its parts.
// No Python here.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <array>

#include "unigram.hpp"

namespace tinylm::sentencepiece {

// The ids of a text; like a vector, but new room is not filled with zeros.
class Ids {
  public:
    uint32_t* room(size_t wanted) {
        if (size_ + wanted > capacity_) {
            capacity_ = std::max(2 * capacity_, size_ + wanted + 64);
            std::unique_ptr<uint32_t[]> larger(new uint32_t[capacity_]);
            if (size_) std::memcpy(larger.get(), data_.get(), size_ * 4);
            data_ = std::move(larger);
        }
        return data_.get() + size_;
    }
    void grow(size_t written) { size_ += written; }
    void add(uint32_t id) { *room(1) = id, size_++; }
    size_t size() const { return size_; }
    const uint32_t* data() const { return data_.get(); }
    uint32_t* release() { return data_.release(); }

  private:
    std::unique_ptr<uint32_t[]> data_;
    size_t size_ = 0, capacity_ = 0;
};

// Which places of a text no piece can cross: where no piece holds the two characters beside it in a row.
class Cuts {
  public:
    // words: before a "▁" in any case.
    Cuts(const std::vector<std::string>& texts, bool words) : words_(words) {
        std::vector<uint64_t> pairs;
        for (const std::string& text : texts) {
            uint32_t before = 0;
            for (size_t i = 0, size; i < text.size(); i += size) {
                size = std::min(text.size() - i, character_size(static_cast<unsigned char>(text[i])));
                const uint32_t character = pack(&text[i], size);
                if (i > 0 && !(words && character == ' ')) {
                    pairs.push_back(hash(before, character));
                    if (before < 128 && character < 128) ascii_[before << 7 | character] = 1;
                }
                before = character;
            }
        }
        size_t size = 1024;
        while (size < 16 * pairs.size()) size *= 2;
        shift_ = 64 - std::countr_zero(size);
        bits_.assign(size / 64, 0);
        for (uint64_t pair : pairs) bits_[pair >> shift_ >> 6] |= 1ull << (pair >> shift_ & 63);
    }

    // Bit i: a part begins at block[i], for i < size <= 64. before: the character in front of the block, then of the next.
    // ASCII text goes 8 bytes at a time and without branches: no processor foresees where a part ends.
    uint64_t starts(const char* block, size_t size, uint32_t& before) const {
        uint64_t out = 0;
        for (size_t i = 0; i < size;) {
            const auto byte = static_cast<unsigned char>(block[i]);
            if (before < 128 && i + 8 <= size && !(load(block + i) & kHighs)) {
                for (size_t j = 0; j < 8; j++) {
                    const auto right = static_cast<unsigned char>(block[i + j]);
                    out |= uint64_t(!ascii_[before << 7 | right]) << (i + j);
                    before = right;
                }
                i += 8;
                continue;
            }
            const size_t length = character_size(byte);
            if ((byte & 0xC0) != 0x80) {  // else: the rest of a character that began in the block before
                const uint32_t character = pack(block + i, length);
                out |= uint64_t(!joined(before, character)) << i;
                before = character;
                i += length;
            } else {
                i++;
            }
        }
        return out;
    }

  private:
    // May err, but only towards yes: then a part is longer than it would have to be.
    bool joined(uint32_t left, uint32_t right) const {
        const uint64_t bit = hash(left, right) >> shift_;
        return !(words_ && right == ' ') && bits_[bit >> 6] >> (bit & 63) & 1;
    }

    static uint64_t hash(uint32_t left, uint32_t right) {
        return (uint64_t(left) << 32 | right) * 0x9E3779B97F4A7C15 ^ uint64_t(right) * 0xC2B2AE3D27D4EB4F;
    }

    static uint32_t pack(const char* bytes, size_t size) {
        uint32_t packed = 0;
        std::memcpy(&packed, bytes, size);
        return packed;
    }

    bool words_;
    std::array<uint8_t, 1 << 14> ascii_{};
    std::vector<uint64_t> bits_;
    int shift_;
};

// Part of a text → its ids, for parts of up to 16 bytes with up to 8 ids. Two places for each part; the older one goes.
class Cache {
  public:
    static constexpr size_t kBytes = 16, kIds = 8;

    struct alignas(64) Entry {
        uint64_t key[2];
        uint8_t size = 0;  // bytes; 0: free
        uint8_t count;
        bool starts_unknown, ends_unknown;
        float limit;   // Unigram: right as long as the sum is not larger in size
        double total;  // Unigram: what it adds to the sum
        uint32_t ids[kIds];
    };

    struct Place {  // where a part is, or would be
        uint64_t key[2];
        Entry* pair;
    };

    Place place(const char* part, size_t size) {
        Place out{{load(part), load(part + 8)}, nullptr};  // there is room to read behind every text
        out.key[0] &= kFirst[std::min<size_t>(size, 8)];
        out.key[1] &= kFirst[size < 8 ? 0 : std::min<size_t>(size - 8, 8)];
        const uint64_t mixed =
            mix(out.key[0] ^ std::rotl(out.key[1] * 0x9E3779B97F4A7C15, 23));
        out.pair = &entries_[(mixed >> 20 & (kEntries / 2 - 1)) * 2];
#ifdef __GNUC__
        __builtin_prefetch(out.pair);
#endif
        return out;
    }

    static bool holds(const Entry& entry, const Place& place, size_t size) {
        return entry.size == size && entry.key[0] == place.key[0] && entry.key[1] == place.key[1];
    }

    // The entry of the part; if it is not there (found: false) one to be filled.
    static Entry* find(const Place& place, size_t size, bool& found) {
        Entry* pair = place.pair;
        found = true;
        if (holds(pair[0], place, size)) return pair;
        if (holds(pair[1], place, size)) return pair + 1;
        found = false;
        if (pair[0].size) pair[1] = pair[0];
        std::memcpy(pair[0].key, place.key, sizeof place.key);
        pair[0].size = 0;
        return pair;
    }

  private:
    static constexpr size_t kEntries = 1 << 16;  // 4 MB
    static constexpr uint64_t kFirst[9] = {0,           0xFF,           0xFFFF,           0xFFFFFF,          0xFFFFFFFF,
                                           0xFFFFFFFFFF, 0xFFFFFFFFFFFF, 0xFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF};

    // Large pages where Linux has them: the entries are all over the table, and address translation is half the cost.
    struct Free {
        void operator()(Entry* entries) const { operator delete[](entries, std::align_val_t(kAlignment)); }
    };
    static Entry* allocate() {
        void* memory = operator new[](kEntries * sizeof(Entry), std::align_val_t(kAlignment));
#ifdef __linux__
        madvise(memory, kEntries * sizeof(Entry), MADV_HUGEPAGE);
#endif
        return new (memory) Entry[kEntries];
    }
    static constexpr size_t kAlignment = 1 << 21;
    std::unique_ptr<Entry[], Free> entries_{allocate()};
};

}  // namespace tinylm::sentencepiece
