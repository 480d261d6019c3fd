// Memory in large pages: a table that is read here and there needs fewer of the processor's page translations. No Python
// here.
#pragma once

#include <cstddef>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace tinylm {

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
