// WordPiece: text to ids. wordpiece_words.hpp finds the words; a table of words gives the ids of nearly all of them at
// once; the others are matched greedily in a trie, and remembered.
//
//   - Words of up to 16 bytes are keys as they are. They are collected in batches, so that the memory of the table is on
//     its way (prefetched) while the next words are found.
//   - The table starts with the vocabulary, and is only a memory of what the trie says: it may forget.
#pragma once

#include <memory>

#include "idle.hpp"
#include "ids.hpp"
#include "wordpiece_trie.hpp"
#include "wordpiece_words.hpp"

namespace tinylm {

class WordPiece {
  public:
    WordPiece(const std::vector<std::string_view>& tokens, const std::vector<uint32_t>& ids, uint32_t unknown,
              size_t longest, bool lower, CharacterTable characters)
        : basic_(std::move(characters), lower), trie_(tokens, ids), first_table_(kBits), unknown_(unknown),
          longest_(longest) {
        std::vector<uint32_t> found;
        for (std::string_view token : tokens)
            if (is_key(token) && !token.starts_with("##") && token.size() <= longest_) {
                match(token, found);
                first_table_.remember(Key(token), found);
            }
        for (uint32_t code = 0; code < 128; code++) {
            const char character = char(code);
            match({&character, 1}, found);
            alone_[code] = found[0];
        }
    }

    // The ids of a text in valid UTF-8. Threads may call it at once: each has a worker of its own.
    void encode(std::string_view text, IdArray& ids) const {
        std::unique_ptr<Worker> worker = take();
        Run{*this, *worker, ids}.all(text);
        idle_.give_back(std::move(worker));
    }

    void after_fork() { idle_.after_fork(); }

  private:
    static constexpr int kBits = 16;
    static constexpr size_t kBatch = 32;

    struct Batch {  // words that wait to be looked up
        std::array<uint64_t, kBatch> low, high;
        std::array<uint32_t, kBatch> at;  // where the slot should be
        std::array<uint32_t, kBatch> id;  // kNoId: to be looked up
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
        IdArray& ids;
        Batch batch;

        void all(std::string_view text) {
            model.basic_.words(text, worker.word, *this);
            flush();
        }

        void letters(uint64_t low, uint64_t high, int) { push(Key(low, high)); }

        void mark(uint8_t character) { push_id(model.alone_[character]); }

        void word(std::string_view bytes) {
            if (is_key(bytes)) return push(Key(bytes));
            flush();
            model.match(bytes, worker.found);
            ids.add(worker.found.data(), worker.found.size());
        }

        void push(const Key& key) {
            const size_t at = worker.table.start(key);
            worker.table.prefetch(at);
            batch.low[batch.size] = key.low;
            batch.high[batch.size] = key.high;
            batch.at[batch.size] = uint32_t(at);
            push_id(kNoId);
        }

        void push_id(uint32_t id) {
            batch.id[batch.size++] = id;
            if (batch.size == kBatch) flush();
        }

        void flush() {
            uint32_t* out = ids.room_for(kBatch * 16 + WordTable::kInline);
            for (size_t i = 0; i < batch.size; i++) {
                if (batch.id[i] != kNoId) {
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
            ids.grown_to(out);
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

    // The pieces of a word, or the unknown token.
    void match(std::string_view word, std::vector<uint32_t>& ids) const {
        size_t characters = 0;
        for (char byte : word) characters += (byte & 0xC0) != 0x80;
        if (characters > longest_ || !trie_.match(word, ids)) ids.assign(1, unknown_);
    }

    std::unique_ptr<Worker> take() const {
        std::unique_ptr<Worker> worker = idle_.take();
        return worker ? std::move(worker) : std::make_unique<Worker>(Worker{first_table_, Word(4 * longest_ + 4), {}});
    }

    BasicTokenizer basic_;
    Trie trie_;
    WordTable first_table_;
    uint32_t unknown_;
    size_t longest_;
    std::array<uint32_t, 128> alone_;
    Idle<Worker> idle_;
};

}  // namespace tinylm
