// What the WordPiece encoder looks words up in. Knows nothing of pieces: see wordpiece.hpp.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define TINYLM_SSE2 1
#endif

namespace tinylm {

struct Key {  // a word of up to 16 bytes, filled up with zeros
    uint64_t low = 0, high = 0;

    explicit Key(std::string_view word) {
        char bytes[16] = {};
        std::memcpy(bytes, word.data(), word.size());
        std::memcpy(&low, bytes, 8);
        std::memcpy(&high, bytes + 8, 8);
    }
    Key(uint64_t low, uint64_t high) : low(low), high(high) {}

    uint64_t hash() const {
        const uint64_t mixed = (low ^ std::rotl(high * 0x9E3779B97F4A7C15u, 32)) * 0xD6E8FEB86659FD93u;
        return mixed ^ mixed >> 32;
    }
};

// Word → ids, for words of up to 16 bytes. A slot is half a cache line.
class WordTable {
  public:
    static constexpr size_t kInline = 3;

    explicit WordTable(int bits) : slots_(size_t(1) << bits), shift_(64 - bits) {}

    struct Slot {
        uint64_t low = 0, high = 0;
        uint32_t ids[kInline] = {};
        uint32_t count = 0;  // 0: free
    };

    size_t start(const Key& key) const { return size_t(key.hash() * 0x9E3779B97F4A7C15u >> shift_); }

    void prefetch(size_t at) const {
#ifdef TINYLM_SSE2
        _mm_prefetch(reinterpret_cast<const char*>(&slots_[at]), _MM_HINT_T0);
#endif
    }

    const Slot* find(const Key& key, size_t at) const {
        for (int probe = 0; probe < kProbes; probe++) {
            const Slot& slot = slots_[(at + probe) & (slots_.size() - 1)];
            if (slot.low == key.low && slot.high == key.high) return &slot;
            if (slot.count == 0) return nullptr;
        }
        return nullptr;
    }

    // Words of more ids, and those whose neighbourhood is full, are not remembered.
    void remember(const Key& key, const std::vector<uint32_t>& ids) {
        if (ids.size() > kInline) return;
        const size_t at = start(key);
        for (int probe = 0; probe < kProbes; probe++) {
            Slot& slot = slots_[(at + probe) & (slots_.size() - 1)];
            if (slot.count) continue;
            slot.low = key.low, slot.high = key.high;
            std::copy(ids.begin(), ids.end(), slot.ids);
            slot.count = uint32_t(ids.size());
            used_++;
            return;
        }
    }

    bool full() const { return used_ > slots_.size() / 4 * 3; }

  private:
    static constexpr int kProbes = 8;

    std::vector<Slot> slots_;
    int shift_;
    size_t used_ = 0;
};

}  // namespace tinylm
