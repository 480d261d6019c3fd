// Memory for many short lists that come and go. No Python here.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#include "large_pages.hpp"

namespace tinylm {

// Lists of 32-bit numbers. Those of up to kMost numbers come out of large blocks and go back to others of about the same
// length; longer ones are the system's. For one thread at a time.
class ListPool {
  public:
    uint32_t* take(size_t size) {
        if (size > kMost) {
            auto list = std::make_unique_for_overwrite<uint32_t[]>(size);
            uint32_t* start = list.get();
            long_.emplace(start, std::move(list));
            return start;
        }
        const size_t room = room_for(size);
        uint32_t*& free = free_[class_of(room)];
        if (free) {
            uint32_t* list = free;
            std::memcpy(&free, list, sizeof free);
            return list;
        }
        if (left_ < room) {
            blocks_.emplace_back().reserve(kBlock);
            next_ = blocks_.back().data();
            left_ = kBlock;
        }
        left_ -= room;
        return std::exchange(next_, next_ + room);
    }

    void give_back(uint32_t* list, size_t size) {
        if (size > kMost) {
            long_.erase(list);
        } else {
            uint32_t*& free = free_[class_of(room_for(size))];
            std::memcpy(list, &free, sizeof free);
            free = list;
        }
    }

  private:
    static constexpr size_t kMost = 1 << 13, kBlock = 1 << 20;

    // The next of 2, 4, 6, 8, 12, 16, 24, 32, ...: each holds a pointer to the next free list.
    static size_t room_for(size_t size) {
        if (size <= 2) return 2;
        const size_t whole = std::bit_ceil(size);
        return whole > 4 && size <= whole / 4 * 3 ? whole / 4 * 3 : whole;
    }
    static size_t class_of(size_t room) { return 2 * size_t(std::bit_width(room)) + std::has_single_bit(room); }

    uint32_t* free_[2 * 16] = {};
    std::vector<LargeVector<uint32_t>> blocks_;
    uint32_t* next_ = nullptr;
    size_t left_ = 0;
    std::unordered_map<uint32_t*, std::unique_ptr<uint32_t[]>> long_;
};

}  // namespace tinylm
