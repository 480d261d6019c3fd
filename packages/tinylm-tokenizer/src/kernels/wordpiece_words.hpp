// WordPiece: text to words, as BERT's basic tokenisation cuts it. One pass; ASCII letters and digits are looked at 16 at
// a time: their lower case, and where the word ends. What is done with the words is the caller's: wordpiece.hpp looks
// them up, wordpiece_train.hpp counts them.
#pragma once

#include <array>
#include <bit>
#include <string_view>
#include <utility>

#include "wordpiece_table.hpp"
#include "wordpiece_text.hpp"

namespace tinylm {

class BasicTokenizer {
  public:
    BasicTokenizer(CharacterTable characters, bool lower) : characters_(std::move(characters)), lower_(lower ? 0x20 : 0) {
        for (uint32_t code = 0; code < 128; code++) ascii_[code] = uint8_t(characters_[code] & 7);
    }

    // Gives every word of a text in valid UTF-8 to `sink`, as one of
    //   sink.letters(low, high, size)   up to 15 ASCII letters and digits, filled up with zeros
    //   sink.mark(byte)                 one ASCII character that is a word of its own
    //   sink.word(bytes)                any other
    // `word` is room to build words in, empty before and after.
    template <class Sink>
    void words(std::string_view text, Word& word, Sink& sink) const {
        Run<Sink>{*this, word, sink}.all(text);
    }

  private:
    template <class Sink>
    struct Run {  // one text
        const BasicTokenizer& rules;
        Word& word;
        Sink& sink;

        void all(std::string_view text) {
            const char *at = text.data(), *end = at + text.size();
            while (at < end) {
                const char* after = end - at > 16 ? ascii_word(at) : nullptr;
                at = after ? after : any_word(at, end);
            }
            finish_word();
        }

        // A word of up to 15 ASCII letters and digits, and the space or mark behind it: returns what follows, or nullptr
        // if it is something else that stands there.
        const char* ascii_word(const char* at) {
            uint64_t low, high;
            const int size = rules.letters(at, low, high);
            if (size == 16) return nullptr;
            const uint8_t behind = uint8_t(at[size]);
            const uint8_t kind = behind < 128 ? rules.ascii_[behind] : uint8_t(kLetter);
            if (kind != kSpace && kind != kAlone) return nullptr;
            if (size) sink.letters(low, high, size);
            if (kind == kAlone) sink.mark(behind);
            return at + size + 1;
        }

        // Whatever comes, until no word is begun: returns what follows.
        const char* any_word(const char* at, const char* end) {
            do {
                const char* start = at;
                const uint32_t code = next_character(at);
                const std::string_view character(start, size_t(at - start));
                const uint32_t value = rules.characters_[code];
                switch (value & 7) {
                    case kLetter: word.add(character); break;
                    case kRemoved: break;
                    case kSpace: finish_word(); break;
                    case kAlone: alone(character); break;
                    case kMapped: mapped(rules.characters_.string(value)); break;
                    case kFence: word.fence(); break;
                    case kSorted: word.add_sorted(character, value >> 3); break;
                    case kHangul: word.add_hangul(code); break;
                }
            } while (at < end && !word.empty());
            return at;
        }

        void mapped(std::string_view string) {
            const char *at = string.data(), *end = at + string.size();
            while (at < end) {
                const char* start = at;
                const uint32_t code = next_character(at);
                const std::string_view character(start, size_t(at - start));
                const uint32_t value = rules.characters_[code];
                if (code == ' ') finish_word();
                else if ((value & 7) == kSorted) word.add_sorted(character, value >> 3);
                else word.add(character);
            }
        }

        void alone(std::string_view character) {
            finish_word();
            if (character.size() == 1) sink.mark(uint8_t(character[0]));
            else sink.word(character);
        }

        void finish_word() {
            if (word.empty()) return;
            sink.word(word.bytes());
            word.clear();
        }
    };

    // The ASCII letters and digits at `at` (16 bytes can be read): how many, and they in lower case.
    int letters(const char* at, uint64_t& low, uint64_t& high) const {
#ifdef TINYLM_SSE2
        const auto all = [](int value) { return _mm_set1_epi8(char(value)); };
        const __m128i text = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
        const __m128i folded = _mm_or_si128(text, all(0x20));
        const __m128i letter = _mm_and_si128(_mm_cmpgt_epi8(folded, all('a' - 1)), _mm_cmpgt_epi8(all('z' + 1), folded));
        const __m128i digit = _mm_and_si128(_mm_cmpgt_epi8(text, all('0' - 1)), _mm_cmpgt_epi8(all('9' + 1), text));
        const uint32_t others = ~uint32_t(_mm_movemask_epi8(_mm_or_si128(letter, digit)));
        const int size = std::countr_zero(others | 0x10000);
        const __m128i lowered = _mm_or_si128(text, _mm_and_si128(letter, all(lower_)));
        alignas(16) static constexpr uint8_t kKeep[32] = {255, 255, 255, 255, 255, 255, 255, 255,
                                                          255, 255, 255, 255, 255, 255, 255, 255};
        const __m128i keep = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kKeep + 16 - size));
        alignas(16) uint64_t halves[2];
        _mm_store_si128(reinterpret_cast<__m128i*>(halves), _mm_and_si128(lowered, keep));
        low = halves[0], high = halves[1];
        return size;
#else
        char bytes[16] = {};
        int size = 0;
        for (; size < 16; size++) {
            const char folded = char(at[size] | 0x20);
            if (folded >= 'a' && folded <= 'z') bytes[size] = char(at[size] | lower_);
            else if (at[size] >= '0' && at[size] <= '9') bytes[size] = at[size];
            else break;
        }
        std::memcpy(&low, bytes, 8);
        std::memcpy(&high, bytes + 8, 8);
        return size;
#endif
    }

    CharacterTable characters_;
    int lower_;
    std::array<uint8_t, 128> ascii_;
};

}  // namespace tinylm
