// How text is written inside the SentencePiece kernels, and the buffer it stands in. No Python here.
//
// "▁" (3 bytes) is written as the byte ' ', and a real space, if one is left, as 0xFF, which occurs in no UTF-8: so
// that ordinary text is copied as it stands.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>

namespace tinylm::sentencepiece {

constexpr char kRealSpace = '\xFF';

inline size_t character_size(unsigned char lead) {
    return lead < 0x80 || lead == 0xFF ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

inline uint64_t load(const char* from) {
    uint64_t word;
    std::memcpy(&word, from, 8);
    return word;
}

constexpr uint64_t kOnes = 0x0101010101010101, kHighs = 0x8080808080808080;

// The high bit of each byte that is a space; exact up to the first one.
inline uint64_t spaces_in(uint64_t word) {
    word ^= kOnes * ' ';
    return (word - kOnes) & ~word & kHighs;
}

// "▁" → ' ' and ' ' → 0xFF: how texts are written in here.
inline std::string to_internal(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (size_t i = 0; i < text.size(); i++) {
        if (text.compare(i, 3, "\xE2\x96\x81") == 0) {
            out += ' ';
            i += 2;
        } else {
            out += text[i] == ' ' ? kRealSpace : text[i];
        }
    }
    return out;
}

// Bytes with room to write, and 32 spaces behind the end, so that words can be read 8 bytes at a time.
class Buffer {
  public:
    void clear() { size_ = 0; }
    size_t size() const { return size_; }
    size_t capacity() const { return capacity_; }
    std::string_view view() const { return {data_.get(), size_}; }
    char back() const { return data_[size_ - 1]; }
    void pop() { size_--; }
    void drop(size_t from_the_start) {
        size_ -= from_the_start;
        std::memmove(data_.get(), data_.get() + from_the_start, size_);
    }
    void seal() {
        char* end = room(32);
        std::memset(end, ' ', 32);
    }
    char* room(size_t wanted) {
        if (size_ + wanted > capacity_) [[unlikely]] enlarge(size_ + wanted + 64);
        return data_.get() + size_;
    }
    void grow(size_t written) { size_ += written; }
    void add(char byte) {
        *room(1) = byte;
        size_++;
    }
    void add(const char* from, size_t size) {
        std::memcpy(room(size), from, size);
        size_ += size;
    }

  private:
    [[gnu::noinline]] void enlarge(size_t least) {
        capacity_ = std::max(2 * capacity_, least);
        std::unique_ptr<char[]> larger(new char[capacity_]);
        if (size_) std::memcpy(larger.get(), data_.get(), size_);
        data_ = std::move(larger);
    }

    std::unique_ptr<char[]> data_;
    size_t size_ = 0, capacity_ = 0;
};

}  // namespace tinylm::sentencepiece
