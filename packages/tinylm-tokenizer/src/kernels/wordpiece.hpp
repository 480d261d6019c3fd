// WordPiece: text to ids. One pass over the text finds the words; a table of words gives the ids of nearly all of them at
// once; the others are matched greedily in a trie, and remembered.
//
//   - ASCII letters and digits are looked at 16 at a time: their lower case, and where the word ends.
//   - Words of up to 16 bytes are keys as they are. They are collected in batches, so that the memory of the table is on
//     its way (prefetched) while the next words are found.
//   - The table starts with the vocabulary, and is only a memory of what the trie says: it may forget.
#pragma once

#include <memory>
#include <mutex>

#include "wordpiece_table.hpp"
#include "wordpiece_text.hpp"
#include "wordpiece_trie.hpp"

namespace tinylm {

class WordPiece {
  public:
    WordPiece(const std::vector<std::string_view>& tokens, const std::vector<uint32_t>& ids, uint32_t unknown,
              size_t longest, bool lower, CharacterTable characters)
        : characters_(std::move(characters)), trie_(tokens, ids), first_table_(kBits), unknown_(unknown),
          longest_(longest), lower_(lower ? 0x20 : 0) {
        std::vector<uint32_t> found;
        for (std::string_view token : tokens)
            if (is_key(token) && !token.starts_with("##") && token.size() <= longest_) {
                match(token, found);
                first_table_.remember(Key(token), found);
            }
        for (uint32_t code = 0; code < 128; code++) {
            const char character = char(code);
            ascii_[code] = uint8_t(characters_[code] & 7);
            match({&character, 1}, found);
            alone_[code] = found[0];
        }
    }

    // The ids of a text in valid UTF-8. Threads may call it at once: each has a worker of its own.
    void encode(std::string_view text, IdBuffer& ids) const {
        std::unique_ptr<Worker> worker = take();
        Run{*this, *worker, ids}.all(text);
        std::lock_guard lock(mutex_);
        idle_.push_back(std::move(worker));
    }

  private:
    static constexpr int kBits = 16;
    static constexpr size_t kBatch = 32;

    struct Batch {  // words that wait to be looked up
        std::array<uint64_t, kBatch> low, high;
        std::array<uint32_t, kBatch> at;  // where the slot should be
        std::array<uint32_t, kBatch> id;  // kNone: to be looked up
        size_t size = 0;
    };

    struct Worker {  // what a call needs, kept for the next call: the table remembers words
        WordTable table;
        Word word;
        std::vector<uint32_t> found;
    };

    struct Run {  // one call
        const WordPiece& model;
        Worker& worker;
        IdBuffer& ids;
        Batch batch;

        void all(std::string_view text) {
            const char *at = text.data(), *end = at + text.size();
            while (at < end) {
                const char* after = end - at > 16 ? ascii_word(at) : nullptr;
                at = after ? after : any_word(at, end);
            }
            finish_word();
            flush();
        }

        // A word of up to 15 ASCII letters and digits, and the space or mark behind it: returns what follows, or nullptr
        // if it is something else that stands there.
        const char* ascii_word(const char* at) {
            uint64_t low, high;
            const int size = model.letters(at, low, high);
            if (size == 16) return nullptr;
            const uint8_t behind = uint8_t(at[size]);
            const uint8_t kind = behind < 128 ? model.ascii_[behind] : uint8_t(kLetter);
            if (kind != kSpace && kind != kAlone) return nullptr;
            if (size) push(Key(low, high));
            if (kind == kAlone) push_id(model.alone_[behind]);
            return at + size + 1;
        }

        // Whatever comes, until no word is begun: returns what follows.
        const char* any_word(const char* at, const char* end) {
            do {
                const char* start = at;
                const uint32_t code = next_character(at);
                const std::string_view character(start, size_t(at - start));
                const uint32_t value = model.characters_[code];
                switch (value & 7) {
                    case kLetter: worker.word.add(character); break;
                    case kRemoved: break;
                    case kSpace: finish_word(); break;
                    case kAlone: alone(character); break;
                    case kMapped: mapped(model.characters_.string(value)); break;
                    case kFence: worker.word.fence(); break;
                    case kSorted: worker.word.add_sorted(character, value >> 3); break;
                    case kHangul: worker.word.add_hangul(code); break;
                }
            } while (at < end && !worker.word.empty());
            return at;
        }

        void mapped(std::string_view string) {
            const char *at = string.data(), *end = at + string.size();
            while (at < end) {
                const char* start = at;
                const uint32_t code = next_character(at);
                const std::string_view character(start, size_t(at - start));
                const uint32_t value = model.characters_[code];
                if (code == ' ') finish_word();
                else if ((value & 7) == kSorted) worker.word.add_sorted(character, value >> 3);
                else worker.word.add(character);
            }
        }

        void alone(std::string_view character) {
            finish_word();
            if (character.size() == 1) push_id(model.alone_[uint8_t(character[0])]);
            else push(Key(character));
        }

        void finish_word() {
            if (worker.word.empty()) return;
            const std::string_view bytes = worker.word.bytes();
            if (is_key(bytes)) {
                push(Key(bytes));
            } else {
                flush();
                model.match(bytes, worker.found);
                ids.append(worker.found.data(), worker.found.size());
            }
            worker.word.clear();
        }

        void push(const Key& key) {
            const size_t at = worker.table.start(key);
            worker.table.prefetch(at);
            batch.low[batch.size] = key.low;
            batch.high[batch.size] = key.high;
            batch.at[batch.size] = uint32_t(at);
            push_id(kNone);
        }

        void push_id(uint32_t id) {
            batch.id[batch.size++] = id;
            if (batch.size == kBatch) flush();
        }

        void flush() {
            ids.reserve(kBatch * 16 + WordTable::kInline);
            uint32_t* out = ids.end();
            for (size_t i = 0; i < batch.size; i++) {
                if (batch.id[i] != kNone) {
                    *out++ = batch.id[i];
                    continue;
                }
                const Key key(batch.low[i], batch.high[i]);
                if (const WordTable::Slot* slot = worker.table.find(key, batch.at[i])) {
                    std::memcpy(out, slot->ids, sizeof slot->ids);
                    out += slot->count;
                } else {
                    learn(key);
                    out = std::copy(worker.found.begin(), worker.found.end(), out);
                }
            }
            ids.set_end(out);
            batch.size = 0;
        }

        void learn(const Key& key) {
            char bytes[17] = {};
            std::memcpy(bytes, &key.low, 8);
            std::memcpy(bytes + 8, &key.high, 8);
            model.match(bytes, worker.found);
            if (worker.table.full()) worker.table = model.first_table_;
            worker.table.remember(key, worker.found);
        }
    };

    static bool is_key(std::string_view word) {
        return !word.empty() && word.size() <= 16 && word.find('\0') == std::string_view::npos;
    }

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

    // The pieces of a word, or the unknown token.
    void match(std::string_view word, std::vector<uint32_t>& ids) const {
        size_t characters = 0;
        for (char byte : word) characters += (byte & 0xC0) != 0x80;
        if (characters > longest_ || !trie_.match(word, ids)) ids.assign(1, unknown_);
    }

    std::unique_ptr<Worker> take() const {
        {
            std::lock_guard lock(mutex_);
            if (!idle_.empty()) {
                std::unique_ptr<Worker> worker = std::move(idle_.back());
                idle_.pop_back();
                return worker;
            }
        }
        return std::make_unique<Worker>(Worker{first_table_, Word(4 * longest_ + 4), {}});
    }

    CharacterTable characters_;
    Trie trie_;
    WordTable first_table_;
    uint32_t unknown_;
    size_t longest_;
    int lower_;
    std::array<uint8_t, 128> ascii_;
    std::array<uint32_t, 128> alone_;
    mutable std::mutex mutex_;
    mutable std::vector<std::unique_ptr<Worker>> idle_;
};

}  // namespace tinylm
