// Pair of ids → value, for training. Open addressing with linear probing.
#pragma once

#include <cstdint>
#include <vector>

#include "count.hpp"
#include "large_pages.hpp"
#include "merge.hpp"

namespace tinylm {

template <class Value>
class PairTable {
  public:
    struct Slot {
        uint64_t key = kFree;
        Value value{};
    };
    static constexpr uint64_t kFree = ~uint64_t(0);

    PairTable() : slots_(kFewest) {}

    void clear() {
        slots_ = LargeVector<Slot>(kFewest);
        used_ = 0;
    }

    Value* find(uint64_t key) {
        Slot& slot = slots_[slot_of(key)];
        return slot.key == key ? &slot.value : nullptr;
    }

    void prefetch_slot(uint64_t key) const { prefetch(&slots_[mix(key) & (slots_.size() - 1)]); }

    // The value of a pair, made if it is missing. When the table has to grow, pairs for which drop(value) is true go.
    template <class Drop>
    Value& insert(uint64_t key, Drop&& drop) {
        if (used_ * 3 >= slots_.size() * 2) grow(drop);
        Slot& slot = slots_[slot_of(key)];
        if (slot.key != key) {
            slot.key = key;
            used_++;
        }
        return slot.value;
    }
    Value& insert(uint64_t key) {
        return insert(key, [](const Value&) { return false; });
    }

    // f(key, value) for each pair.
    template <class F>
    void for_each(F&& f) {
        for (Slot& slot : slots_)
            if (slot.key != kFree) f(slot.key, slot.value);
    }

  private:
    static constexpr size_t kFewest = 1024;

    size_t slot_of(uint64_t key) const {
        size_t slot = mix(key) & (slots_.size() - 1);
        while (slots_[slot].key != key && slots_[slot].key != kFree) slot = (slot + 1) & (slots_.size() - 1);
        return slot;
    }

    template <class Drop>
    void grow(Drop&& drop) {
        used_ = 0;
        for_each([&](uint64_t, Value& value) { used_ += !drop(value); });
        LargeVector<Slot> old(slots_.size() * (used_ * 3 >= slots_.size() ? 2 : 1));
        old.swap(slots_);
        for (Slot& slot : old)
            if (slot.key != kFree && !drop(slot.value)) slots_[slot_of(slot.key)] = std::move(slot);
    }

    LargeVector<Slot> slots_;
    size_t used_ = 0;
};

}  // namespace tinylm
