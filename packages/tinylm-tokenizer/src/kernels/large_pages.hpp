// Memory in large pages: a table that is read here and there needs fewer of the processor's page translations. No Python
// here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <time.h>
#endif

namespace tinylm {

// Asks for large pages where the system has them: memory that is written once, from end to end, otherwise costs a fault
// for each 4 KB, which for short tokens is as much as finding them. It asks for all pages that the memory touches: were
// the first one left out, it would be a mapping of its own to the system, and realloc could not move what are two
// mappings; it would copy.
inline void write_in_large_pages(void* memory, size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr size_t page = 4096, worth_it = size_t(4) << 20;
    if (size < worth_it) return;
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory) / page * page;
    const uintptr_t end = reinterpret_cast<uintptr_t>(memory) + size;
    madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);  // what it says does not matter
#else
    (void)memory, (void)size;
#endif
}

// Memory that begins with a large page, if it is large: otherwise what stands before the first and behind the last one is a
// megabyte on average. For std::free; null: there is none.
inline void* allocate_in_large_pages(size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr size_t page = size_t(2) << 20;
    if (size >= 2 * page) return std::aligned_alloc(page, (size + page - 1) / page * page);
#endif
    return std::malloc(size);
}

// Memory that is written from its start to its end, in large pages as long as they are quick to get: one takes 0.2 ms, but
// 5 on a virtual machine that has given it back to its host meanwhile, where 512 small ones take 1 (docs/log.md, "large
// pages of a virtual machine"). So they are taken one at a time, and one that was slow is the last.
class PageByPage {
  public:
    // `memory` is new, or has moved; bytes from `used` on hold nothing yet.
    void start(void* memory, size_t size, size_t used) {
        memory_ = static_cast<std::byte*>(memory), size_ = size, ready_ = used;
        write_in_large_pages(memory, size);
    }

    // Before realloc, which can move one mapping, not two.
    void stop() const { write_in_large_pages(memory_, size_); }

    // The bytes that may be written now, at least `wanted` of them.
    size_t ready(size_t wanted) {
#if defined(__linux__) && defined(MADV_NOHUGEPAGE)
        constexpr uintptr_t page = uintptr_t(2) << 20;
        constexpr long slow = 1'000'000;  // nanoseconds
        const uintptr_t end = reinterpret_cast<uintptr_t>(memory_) + size_;
        while (ready_ < wanted) {
            const uintptr_t next = (reinterpret_cast<uintptr_t>(memory_) + ready_ + page - 1) / page * page;
            if (size_ < 2 * page || next + page > end) return ready_ = size_;  // no whole page is left
            const long started = now();
            *reinterpret_cast<volatile std::byte*>(next) = {};
            ready_ = next + page - reinterpret_cast<uintptr_t>(memory_);
            if (now() - started < slow) continue;
            madvise(reinterpret_cast<void*>(next + page), end - next - page, MADV_NOHUGEPAGE);
            ready_ = size_;
        }
        return ready_;
#else
        return std::max(wanted, size_);
#endif
    }

  private:
#if defined(__linux__)
    static long now() {  // of this thread's work alone
        timespec time;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
        return long(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
    }
#endif

    std::byte* memory_ = nullptr;
    size_t size_ = 0, ready_ = 0;
};

// Allocates for a std::vector; from 4 MB on in large pages where the system has them. What is not given a value has none.
template <class T>
struct LargePages {
    using value_type = T;
    LargePages() = default;
    template <class Other>
    LargePages(const LargePages<Other>&) {}

    T* allocate(size_t number) {
        const size_t size = number * sizeof(T);
        if (size < kLeast) return static_cast<T*>(::operator new(size, kAlignment));
        void* memory = ::operator new(size, kPage);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        madvise(memory, size, MADV_HUGEPAGE);  // what it says does not matter
#endif
        return static_cast<T*>(memory);
    }
    void deallocate(T* memory, size_t number) {
        ::operator delete(memory, number * sizeof(T) < kLeast ? kAlignment : kPage);
    }
    template <class Value, class... Arguments>
    void construct(Value* value, Arguments&&... arguments) {  // numbers that are not given are not set to zero
        if constexpr (sizeof...(Arguments) == 0)
            new (value) Value;
        else
            new (value) Value(std::forward<Arguments>(arguments)...);
    }
    bool operator==(const LargePages&) const { return true; }

  private:
    static constexpr size_t kLeast = 1 << 22;
    static constexpr std::align_val_t kPage{1 << 21}, kAlignment{alignof(std::max_align_t)};
};

template <class T>
using LargeVector = std::vector<T, LargePages<T>>;

}  // namespace tinylm
