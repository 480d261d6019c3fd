// The parts of a text → ids: looked up if they were there before, else encoded by BPE or Unigram. No Python here.
//
// A cached part of BPE is always right. Unigram's sums run through the whole text; unigram.hpp says up to which size of
// the sum a part may be taken from the cache, and beyond it is solved again with the exact sum.
#pragma once

#include <cstdlib>
#include <new>
#include <optional>

#include "sentencepiece_cache.hpp"

namespace tinylm::sentencepiece {

// The ids of a text; like a vector, but new room is not filled with zeros, and a large one grows without being copied.
class Ids {
  public:
    Ids() = default;
    Ids(Ids&& other) noexcept { *this = std::move(other); }
    Ids& operator=(Ids&& other) noexcept {
        std::swap(data_, other.data_), std::swap(size_, other.size_), std::swap(capacity_, other.capacity_);
        return *this;
    }
    ~Ids() { std::free(data_); }

    uint32_t* room(size_t wanted) {
        if (size_ + wanted > capacity_) grow_to(std::max(capacity_ + capacity_ / 2, size_ + wanted + 64));
        return data_ + size_;
    }
    void grow(size_t written) { size_ += written; }
    void add(uint32_t id) { *room(1) = id, size_++; }
    void add(const uint32_t* ids, size_t count) {
        if (count) std::memcpy(room(count), ids, count * sizeof *ids);
        size_ += count;
    }
    void clear() { size_ = 0; }
    size_t size() const { return size_; }
    const uint32_t* data() const { return data_; }
    uint32_t* release() { return std::exchange(data_, nullptr); }  // to be given to std::free

  private:
    void grow_to(size_t capacity) {
        void* larger = std::realloc(data_, capacity * sizeof(uint32_t));
        if (!larger) throw std::bad_alloc();
        data_ = static_cast<uint32_t*>(larger);
        capacity_ = capacity;
        prefer_large_pages(larger, capacity * sizeof(uint32_t));
    }

    uint32_t* data_ = nullptr;
    size_t size_ = 0, capacity_ = 0;
};

struct Options {
    bool bpe;
    bool words;         // each "▁" starts a part of its own, whatever the pieces hold
    bool fuse_unknown;  // neighbouring unknown characters become one id
    bool in_double;
    std::optional<uint32_t> unknown_id;
    std::optional<std::array<uint32_t, 256>> byte_ids;  // given: unknown characters become bytes
};

// The sum of Unigram's scores so far: quickly, with what it may be off, and exactly up to some id.
struct Sum {
    double about = 0;
    size_t added = 0;  // scores since `about` was exact; each may be rounded by less than 2^-8, as sums end at 10^5
    double exact = 0;
    size_t exact_at = 0;  // ids

    void add(double score, size_t count) { about += score, added += count; }
    bool within(double limit) const { return std::abs(about) + double(added) * 0x1p-8 < limit; }
};

// What one text needs for itself; kept for the next text, so that the cache is warm.
struct Worker {
    Buffer normalized;
    Cache cache;
    std::vector<Token> tokens;
    Bpe::Scratch bpe;
    Unigram::Scratch unigram;
    Sum sum;
    Ids own;  // of a part that is new
    bool after_unknown;
};

class Parts {
  public:
    Parts(const std::vector<std::string>& texts, Options options, std::optional<Bpe> bpe,
          std::optional<Unigram> unigram)
        : options_(options), bpe_(std::move(bpe)), unigram_(std::move(unigram)) {
        singles_.fill(kNone);
        for (uint32_t id = 0; id < texts.size(); id++)
            if (texts[id].size() == 1) singles_[static_cast<unsigned char>(texts[id][0])] = id;
    }

    // Adds the ids of a part. place: in the worker's cache; not used for one byte.
    void encode(const char* part, size_t size, Cache::Place& place, Worker& worker, Ids& ids) const {
        if (options_.words && *part == ' ') worker.after_unknown = false;
        if (size == 1) {
            const uint32_t id = singles_[static_cast<unsigned char>(*part)];
            if (id != kNone && (!unigram_ || worker.sum.within(unigram_->safe()))) {
                if (unigram_) worker.sum.add(unigram_->score(id), 1);
                ids.add(id);
                worker.after_unknown = false;
                return;
            }
        }
        if (size == 1 || size > Cache::kBytes) {
            if (size == 1 && singles_[static_cast<unsigned char>(*part)] == kNone)
                encode_unknown({part, size}, worker, ids);
            else
                encode_new({part, size}, worker, ids);
            return;
        }
        bool found;
        Cache::Entry& entry = *Cache::find(place, size, found);
        if (!found && !fill(entry, {part, size}, worker, ids)) return;
        if (unigram_) {
            if (!worker.sum.within(entry.limit)) {
                encode_new({part, size}, worker, ids);
                return;
            }
            worker.sum.add(entry.total, entry.count);
        }
        const bool fuse = worker.after_unknown && entry.starts_unknown;  // its first id stands there already
        std::memcpy(ids.room(Cache::kIds), entry.ids + fuse, sizeof entry.ids - 4 * fuse);
        ids.grow(entry.count - fuse);
        worker.after_unknown = entry.ends_unknown;
    }

    bool is_unigram() const { return unigram_.has_value(); }

    double exact_sum(const Sum& sum, const Ids& ids) const {
        return unigram_->add(sum.exact, ids.data() + sum.exact_at, ids.size() - sum.exact_at);
    }

  private:
    // Without the cache: BPE merges, or Viterbi with the exact sum.
    void encode_new(std::string_view part, Worker& worker, Ids& ids) const {
        if (bpe_) {
            bpe_->encode(part, worker.bpe, worker.tokens);
            emit(part.data(), worker, ids);
            return;
        }
        const double sum = unigram_->exact(part, exact_sum(worker.sum, ids), worker.unigram, worker.tokens);
        emit(part.data(), worker, ids);
        worker.sum = {sum, 0, sum, ids.size()};
    }

    // A character that no piece covers.
    void encode_unknown(std::string_view character, Worker& worker, Ids& ids) const {
        worker.tokens.assign(1, {kNone, uint32_t(character.size())});
        const bool fused = worker.after_unknown && options_.fuse_unknown;
        const bool own_id = options_.unknown_id && !options_.byte_ids && !fused;
        if (!unigram_) {
            emit(character.data(), worker, ids);
        } else if (own_id && worker.sum.within(unigram_->safe())) {  // the id's score is that of an unknown character
            emit(character.data(), worker, ids);
            worker.sum.add(unigram_->unknown(), 1);
        } else {
            const double sum = unigram_->add_unknown(exact_sum(worker.sum, ids));
            emit(character.data(), worker, ids);
            worker.sum = {sum, 0, sum, ids.size()};
        }
    }

    // Encode a part that is new. If it fits into the cache it is put into the entry, else its ids are written here.
    bool fill(Cache::Entry& entry, std::string_view part, Worker& worker, Ids& ids) const {
        double limit = 0;
        if (unigram_)
            limit = unigram_->free(part, worker.unigram, worker.tokens);
        else
            bpe_->encode(part, worker.bpe, worker.tokens);
        bool unknown = false;
        for (const Token& token : worker.tokens) unknown |= token.id == kNone;
        if (unigram_ && (unknown || worker.tokens.size() > Cache::kIds)) {
            if (worker.tokens.size() == 1)
                encode_unknown(part, worker, ids);
            else
                encode_new(part, worker, ids);
            return false;
        }
        Ids& own = worker.own;
        own.clear();
        const bool after_unknown = std::exchange(worker.after_unknown, false);
        emit(part.data(), worker, own);
        if (own.size() > Cache::kIds) {
            worker.after_unknown = after_unknown;
            emit(part.data(), worker, ids);
            return false;
        }
        entry.size = uint8_t(part.size());
        entry.count = uint8_t(own.size());
        entry.starts_unknown = fuses() && worker.tokens.front().id == kNone;
        entry.ends_unknown = fuses() && worker.tokens.back().id == kNone;
        entry.limit = std::nextafter(float(limit), -1.0f);
        entry.total = 0;
        if (unigram_)
            for (const Token& token : worker.tokens) entry.total += unigram_->score(token.id);
        std::memcpy(entry.ids, own.data(), 4 * own.size());
        worker.after_unknown = after_unknown;
        return true;
    }

    bool fuses() const { return options_.fuse_unknown && options_.unknown_id && !options_.byte_ids; }

    void emit(const char* text, Worker& worker, Ids& ids) const {
        for (const Token& token : worker.tokens) {
            const bool unknown = token.id == kNone;
            if (!unknown) {
                ids.add(token.id);
            } else if (options_.byte_ids) {
                for (size_t i = 0; i < token.size; i++) emit_byte(text[i], ids);
            } else if (options_.unknown_id && !(worker.after_unknown && options_.fuse_unknown)) {
                ids.add(*options_.unknown_id);
            }
            worker.after_unknown = unknown;
            text += token.size;
        }
    }

    void emit_byte(char byte, Ids& ids) const {
        const std::string_view same(&byte, 1);
        const std::string_view real = byte == ' ' ? "\xE2\x96\x81" : byte == kRealSpace ? " " : same;
        for (const char c : real) ids.add((*options_.byte_ids)[static_cast<unsigned char>(c)]);
    }

    Options options_;
    std::optional<Bpe> bpe_;
    std::optional<Unigram> unigram_;
    std::array<uint32_t, 256> singles_;  // byte → the piece that is this one character
};

}  // namespace tinylm::sentencepiece
