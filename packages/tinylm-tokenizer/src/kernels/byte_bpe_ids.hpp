// Where ids are collected on their way out, and the pages of what is large. No Python here.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace tinylm {

// Asks for large pages where the system has them: memory that is written once, from end to end, otherwise costs a fault
// for each 4 KB, which for short tokens is as much as finding them.
inline void write_in_large_pages(void* memory, size_t size) {
#if defined(__linux__)
    constexpr size_t page = 4096, worth_it = size_t(4) << 20;
    if (size < worth_it) return;
    const uintptr_t start = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
    madvise(reinterpret_cast<void*>(start), size - page, MADV_HUGEPAGE);  // what it says does not matter
#endif
}

// An array of ids that grows and is never initialised.
class IdArray {
  public:
    explicit IdArray(size_t expected = 0) {
        if (expected) reserve(expected);
    }
    ~IdArray() { std::free(ids_); }
    IdArray(IdArray&& other) noexcept { *this = std::move(other); }
    IdArray& operator=(IdArray&& other) noexcept {
        std::swap(ids_, other.ids_), std::swap(size_, other.size_), std::swap(capacity_, other.capacity_);
        return *this;
    }

    uint32_t* room_for(size_t more) {  // where the next ids go
        if (size_ + more > capacity_) reserve(size_ + more + std::max(size_, size_t(1024)));
        return ids_ + size_;
    }

    void grown_to(const uint32_t* end) { size_ = size_t(end - ids_); }
    void clear() { size_ = 0; }
    size_t size() const { return size_; }
    const uint32_t* data() const { return ids_; }

    uint32_t* release() {  // for free() to give back; null where nothing was added
        if (capacity_ - size_ > 64) reserve(std::max(size_, size_t(1)));
        capacity_ = size_ = 0;
        return std::exchange(ids_, nullptr);
    }

  private:
    void reserve(size_t capacity) {
        void* larger = std::realloc(ids_, capacity * sizeof(uint32_t));
        if (!larger) throw std::bad_alloc();
        if (capacity > capacity_) write_in_large_pages(larger, capacity * sizeof(uint32_t));
        ids_ = static_cast<uint32_t*>(larger);
        capacity_ = capacity;
    }

    uint32_t* ids_ = nullptr;
    size_t size_ = 0, capacity_ = 0;
};

}  // namespace tinylm
