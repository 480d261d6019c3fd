// What each character of a text becomes before WordPiece looks words up: the table that _text/wordpiece_text.py computes, in
// a form that is quick to read. Decides nothing about characters itself.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tinylm {

enum Kind : uint32_t {
    kLetter,   // part of a word, as it is
    kRemoved,  // leaves nothing
    kSpace,    // ends a word
    kAlone,    // a word of its own
    kMapped,   // becomes a string, in which a space ends a word
    kFence,    // leaves nothing, but keeps apart what is sorted before it and after it
    kSorted,   // part of a word, sorted by its combining class among its neighbours of this kind
    kHangul,   // a syllable: becomes two or three letters, by arithmetic
};

class CharacterTable {
  public:
    CharacterTable() : pages_(0x1100), blocks_(1) {}  // block 0 is for pages on which every character is a letter

    // Three bits of kind; above them, the place of the string (kMapped) or the combining class (kSorted).
    uint32_t operator[](uint32_t code) const { return blocks_[pages_[code >> 8]][code & 255]; }

    void set(uint32_t code, uint32_t value) {
        uint16_t& page = pages_[code >> 8];
        if (!page) {
            page = uint16_t(blocks_.size());
            blocks_.emplace_back();
        }
        blocks_[page][code & 255] = value;
    }

    void map(uint32_t code, std::string_view becomes) {
        set(code, kMapped | uint32_t(strings_.size()) << 3);
        strings_ += char(becomes.size());
        strings_ += becomes;
    }

    std::string_view string(uint32_t value) const {
        const char* start = strings_.data() + (value >> 3);
        return {start + 1, size_t(uint8_t(*start))};
    }

  private:
    std::vector<uint16_t> pages_;
    std::vector<std::array<uint32_t, 256>> blocks_;
    std::string strings_;  // each with its length before it
};

// The character at `at`, which is moved behind it. The text is valid UTF-8.
inline uint32_t next_character(const char*& at) {
    const auto byte = [&](int i) { return uint32_t(uint8_t(at[i])); };
    uint32_t code = byte(0);
    int size = 1;
    if (code >= 0xF0) {
        code = (code & 7) << 18 | (byte(1) & 63) << 12 | (byte(2) & 63) << 6 | (byte(3) & 63);
        size = 4;
    } else if (code >= 0xE0) {
        code = (code & 15) << 12 | (byte(1) & 63) << 6 | (byte(2) & 63);
        size = 3;
    } else if (code >= 0x80) {
        code = (code & 31) << 6 | (byte(1) & 63);
        size = 2;
    }
    at += size;
    return code;
}

// A word that grows character by character; those of kSorted find their place in it.
class Word {
  public:
    explicit Word(size_t limit) : limit_(limit) {}

    bool empty() const { return bytes_.empty(); }
    std::string_view bytes() const { return bytes_; }

    void clear() {
        bytes_.clear();
        run_.clear();
    }

    void fence() { run_.clear(); }

    void add(std::string_view character) {
        run_.clear();
        // A word that is certainly too long is one unknown token, whatever more comes: no need to keep it.
        if (bytes_.size() < limit_) bytes_ += character;
    }

    void add_sorted(std::string_view character, uint32_t combining_class) {
        if (bytes_.size() >= limit_) return;
        size_t at = run_.size();
        size_t place = bytes_.size();
        while (at > 0 && run_[at - 1].combining_class > combining_class) place -= run_[--at].size;
        run_.insert(run_.begin() + ptrdiff_t(at), {combining_class, uint32_t(character.size())});
        bytes_.insert(place, character);
    }

    // A Hangul syllable becomes its letters (Unicode Standard, section 3.12).
    void add_hangul(uint32_t code) {
        const uint32_t index = code - 0xAC00;
        add_three_bytes(0x1100 + index / 588);
        add_three_bytes(0x1161 + index % 588 / 28);
        if (index % 28) add_three_bytes(0x11A7 + index % 28);
    }

  private:
    struct Sorted {
        uint32_t combining_class, size;
    };

    void add_three_bytes(uint32_t code) {
        const char bytes[3] = {char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 63)), char(0x80 | (code & 63))};
        add({bytes, 3});
    }

    std::string bytes_;
    std::vector<Sorted> run_;  // the characters of kSorted at its end
    size_t limit_;
};

}  // namespace tinylm
