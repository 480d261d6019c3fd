// Where ids are collected on their way out. No Python here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "large_pages.hpp"

namespace tinylm {

// An array that grows and is never initialised. Growing moves pages, not what they hold.
template <class T>
class Growing {
  public:
    explicit Growing(size_t expected = 0) {
        if (expected) reserve(expected);
    }
    ~Growing() { std::free(items_); }
    Growing(Growing&& other) noexcept { *this = std::move(other); }
    Growing& operator=(Growing&& other) noexcept {
        std::swap(items_, other.items_), std::swap(size_, other.size_), std::swap(capacity_, other.capacity_);
        std::swap(ready_, other.ready_), std::swap(pages_, other.pages_);
        return *this;
    }

    void expect(size_t more) {  // what is not used costs nothing
        if (size_ + more > capacity_) reserve(size_ + more + std::max(size_, size_t(1024)));
    }

    T* room_for(size_t more) {  // where the next ones go
        if (size_ + more > ready_) {
            expect(more);
            ready_ = pages_.ready((size_ + more) * sizeof(T)) / sizeof(T);
        }
        return items_ + size_;
    }

    void grown_to(const T* end) { size_ = size_t(end - items_); }
    void add(T item) { *room_for(1) = item, size_++; }
    void add(const T* items, size_t count) {
        if (count) std::memcpy(room_for(count), items, count * sizeof(T));
        size_ += count;
    }
    void clear() { size_ = 0; }
    size_t size() const { return size_; }
    size_t capacity() const { return capacity_; }
    T* data() { return items_; }
    const T* data() const { return items_; }

    T* release() {  // for free() to give back; null where nothing was added
        if (capacity_ - size_ > 64) reserve(std::max(size_, size_t(1)));
        capacity_ = size_ = ready_ = 0;
        pages_ = {};
        return std::exchange(items_, nullptr);
    }

  private:
    void reserve(size_t capacity) {
        const size_t size = capacity * sizeof(T);
        pages_.stop();
        void* larger = items_ ? std::realloc(items_, size) : allocate_in_large_pages(size);
        if (!larger) throw std::bad_alloc();
        pages_.start(larger, size, size_ * sizeof(T));
        items_ = static_cast<T*>(larger);
        capacity_ = capacity, ready_ = 0;
    }

    T* items_ = nullptr;
    size_t size_ = 0, capacity_ = 0;
    size_t ready_ = 0;  // how many may be written without asking `pages_`
    PageByPage pages_;
};

using IdArray = Growing<uint32_t>;

}  // namespace tinylm
