// What the encoder remembers of pieces that do not fit a slot of its table (byte_bpe_table.hpp): their ids, and before them
// the bytes of those longer than a key. One stretch of memory that is written from its start to its end, again and again.
// No Python here.
//
// One thread adds at a time; any number read meanwhile. Each time around is a turn, and what was added in another turn is
// gone: who reads looks at the turn before and after, as what lies there may just have been written over.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace tinylm {

class IdStore {
  public:
    static constexpr size_t kBytes = 64;  // of a piece, at most
    static constexpr size_t kWords = size_t(1) << 20;

    IdStore() : words_(static_cast<uint32_t*>(std::malloc(kWords * sizeof(uint32_t)))) {
        if (!words_) throw std::bad_alloc();
    }

    // Returns where they are: offset and turn. size ≤ kBytes, count ≤ kBytes.
    uint64_t add(const uint8_t* bytes, size_t size, const uint32_t* ids, size_t count) {
        uint32_t turn = turn_.load(std::memory_order_relaxed);
        if (used_ + words_of(size) + count > kWords) {
            used_ = 0;
            turn_.store(++turn, std::memory_order_relaxed);
            std::atomic_thread_fence(std::memory_order_release);
        }
        const uint64_t where = used_ | uint64_t(turn) << 32;
        for (size_t i = 0; i < words_of(size); i++) put(word_of(bytes, size, i));
        for (size_t i = 0; i < count; i++) put(ids[i]);
        return where;
    }

    // Writes `count` ids; false: they are gone, or were of other bytes.
    bool read(uint64_t where, const uint8_t* bytes, size_t size, uint32_t* ids, size_t count) const {
        const uint32_t turn = uint32_t(where >> 32);
        if (turn_.load(std::memory_order_acquire) != turn) return false;
        const uint32_t* from = &words_[uint32_t(where)];
        uint32_t other = 0;
        for (size_t i = 0; i < words_of(size); i++) other |= get(from++) ^ word_of(bytes, size, i);
        for (size_t i = 0; i < count; i++) ids[i] = get(from++);
        std::atomic_thread_fence(std::memory_order_acquire);
        return !other && turn_.load(std::memory_order_relaxed) == turn;
    }

  private:
    static size_t words_of(size_t size) { return (size + 3) / 4; }

    static uint32_t word_of(const uint8_t* bytes, size_t size, size_t i) {
        uint32_t word = 0;
        std::memcpy(&word, bytes + 4 * i, size - 4 * i < 4 ? size - 4 * i : 4);
        return word;
    }

    // Never set to zero, so that what is not used costs no memory; std::atomic would do that.
    void put(uint32_t word) { __atomic_store_n(&words_[used_++], word, __ATOMIC_RELAXED); }
    static uint32_t get(const uint32_t* word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }

    struct Free {
        void operator()(uint32_t* words) const { std::free(words); }
    };

    std::unique_ptr<uint32_t[], Free> words_;
    size_t used_ = 0;
    std::atomic<uint32_t> turn_{0};
};

}  // namespace tinylm
