// Memory in large pages: a table that is read here and there needs fewer of the processor's page translations. No Python
// here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
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
