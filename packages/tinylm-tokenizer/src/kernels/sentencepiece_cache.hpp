// A part of a text → its ids: what was encoded once is looked up. No Python here.
#pragma once

#include <array>

#include "large_pages.hpp"
#include "unigram.hpp"

namespace tinylm::sentencepiece {

// Part of a text → its ids, for parts of up to 16 bytes with up to 8 ids. Two places for each part; the older one goes.
class Cache {
  public:
    static constexpr size_t kBytes = 16, kIds = 8;

    struct alignas(64) Entry {
        uint64_t key[2];
        uint8_t size = 0;  // bytes; 0: free
        uint8_t count;
        bool starts_unknown, ends_unknown;
        float limit;   // right as long as the sum of Unigram's scores is below
        double reach;  // how far that sum moves at most
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
        const uint64_t mixed = (out.key[0] ^ std::rotl(out.key[1] * 0x9E3779B97F4A7C15, 23)) * 0xD6E8FEB86659FD93;
        out.pair = &entries_[(mixed >> 40 & (kEntries / 2 - 1)) * 2];
#ifdef __GNUC__
        __builtin_prefetch(out.pair);
#endif
        return out;
    }

    static const Entry* find(const Place& place, size_t size) {  // null: the part is not there
        const Entry* pair = place.pair;
        return holds(pair[0], place, size) ? pair : holds(pair[1], place, size) ? pair + 1 : nullptr;
    }

    // An entry for a part that is not there. It counts once its size is set.
    static Entry& renew(const Place& place) {
        Entry* pair = place.pair;
        if (pair[0].size) pair[1] = pair[0];
        std::memcpy(pair[0].key, place.key, sizeof place.key);
        pair[0].size = 0;
        return pair[0];
    }

  private:
    static bool holds(const Entry& entry, const Place& place, size_t size) {
        return entry.size == size && entry.key[0] == place.key[0] && entry.key[1] == place.key[1];
    }

    static constexpr size_t kEntries = 1 << 16;  // 4 MB
    static constexpr uint64_t kFirst[9] = {0,           0xFF,           0xFFFF,           0xFFFFFF,          0xFFFFFFFF,
                                           0xFFFFFFFFFF, 0xFFFFFFFFFFFF, 0xFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF};

    // The entries are all over the table, and address translation would be half the cost: large pages.
    struct Free {
        void operator()(Entry* entries) const { operator delete[](entries, std::align_val_t(kAlignment)); }
    };
    static Entry* allocate() {
        void* memory = operator new[](kEntries * sizeof(Entry), std::align_val_t(kAlignment));
        write_in_large_pages(memory, kEntries * sizeof(Entry));
        return new (memory) Entry[kEntries];
    }
    static constexpr size_t kAlignment = 1 << 21;
    std::unique_ptr<Entry[], Free> entries_{allocate()};
};

}  // namespace tinylm::sentencepiece
