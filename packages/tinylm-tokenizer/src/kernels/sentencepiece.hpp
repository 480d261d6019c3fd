// Text → ids for a vocabulary of the SentencePiece family. No Python here. The readable versions are
// sentencepiece_bpe.py and unigram.py.
//
// The normalised text is cut where no piece can cross, most often before each "▁", and a cache keeps the ids of the short
// parts. Cutting is exact: a merge or a token that crossed the cut would be a piece that holds the two characters beside
// it, and there is none. Unigram's sums run through the whole text; unigram.hpp says when a cached part is still right.
#pragma once

#include <array>
#include <mutex>
#include <optional>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "unigram.hpp"

namespace tinylm::sentencepiece {

// The ids of a text; like a vector, but new room is not filled with zeros.
class Ids {
  public:
    uint32_t* room(size_t wanted) {
        if (size_ + wanted > capacity_) {
            capacity_ = std::max(2 * capacity_, size_ + wanted + 64);
            std::unique_ptr<uint32_t[]> larger(new uint32_t[capacity_]);
            if (size_) std::memcpy(larger.get(), data_.get(), size_ * 4);
            data_ = std::move(larger);
        }
        return data_.get() + size_;
    }
    void grow(size_t written) { size_ += written; }
    void add(uint32_t id) { *room(1) = id, size_++; }
    size_t size() const { return size_; }
    const uint32_t* data() const { return data_.get(); }
    uint32_t* release() { return data_.release(); }

  private:
    std::unique_ptr<uint32_t[]> data_;
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

// Which places of a text no piece can cross: where no piece holds the two characters beside it in a row.
class Cuts {
  public:
    // words: before a "▁" in any case.
    Cuts(const std::vector<std::string>& texts, bool words) : words_(words) {
        std::vector<uint64_t> pairs;
        for (const std::string& text : texts) {
            uint32_t before = 0;
            for (size_t i = 0, size; i < text.size(); i += size) {
                size = std::min(text.size() - i, character_size(static_cast<unsigned char>(text[i])));
                const uint32_t character = pack(&text[i], size);
                if (i > 0 && !(words && character == ' ')) {
                    pairs.push_back(hash(before, character));
                    if (before < 128 && character < 128) ascii_[before << 7 | character] = 1;
                }
                before = character;
            }
        }
        size_t size = 1024;
        while (size < 16 * pairs.size()) size *= 2;
        shift_ = 64 - std::countr_zero(size);
        bits_.assign(size / 64, 0);
        for (uint64_t pair : pairs) bits_[pair >> shift_ >> 6] |= 1ull << (pair >> shift_ & 63);
    }

    // Bit i: a part begins at block[i], for i < size <= 64. before: the character in front of the block, then of the next.
    // ASCII text goes 8 bytes at a time and without branches: no processor foresees where a part ends.
    uint64_t starts(const char* block, size_t size, uint32_t& before) const {
        uint64_t out = 0;
        for (size_t i = 0; i < size;) {
            const auto byte = static_cast<unsigned char>(block[i]);
            if (before < 128 && i + 8 <= size && !(load(block + i) & kHighs)) {
                for (size_t j = 0; j < 8; j++) {
                    const auto right = static_cast<unsigned char>(block[i + j]);
                    out |= uint64_t(!ascii_[before << 7 | right]) << (i + j);
                    before = right;
                }
                i += 8;
                continue;
            }
            const size_t length = character_size(byte);
            if ((byte & 0xC0) != 0x80) {  // else: the rest of a character that began in the block before
                const uint32_t character = pack(block + i, length);
                out |= uint64_t(!joined(before, character)) << i;
                before = character;
                i += length;
            } else {
                i++;
            }
        }
        return out;
    }

  private:
    // May err, but only towards yes: then a part is longer than it would have to be.
    bool joined(uint32_t left, uint32_t right) const {
        const uint64_t bit = hash(left, right) >> shift_;
        return !(words_ && right == ' ') && bits_[bit >> 6] >> (bit & 63) & 1;
    }

    static uint64_t hash(uint32_t left, uint32_t right) {
        return (uint64_t(left) << 32 | right) * 0x9E3779B97F4A7C15 ^ uint64_t(right) * 0xC2B2AE3D27D4EB4F;
    }

    static uint32_t pack(const char* bytes, size_t size) {
        uint32_t packed = 0;
        std::memcpy(&packed, bytes, size);
        return packed;
    }

    bool words_;
    std::array<uint8_t, 1 << 14> ascii_{};
    std::vector<uint64_t> bits_;
    int shift_;
};

// Part of a text → its ids, for parts of up to 16 bytes with up to 8 ids. Two places for each part; the older one goes.
class Cache {
  public:
    static constexpr size_t kBytes = 16, kIds = 8;

    struct alignas(64) Entry {
        uint64_t key[2];
        uint8_t size = 0;  // bytes; 0: free
        uint8_t count;
        bool starts_unknown, ends_unknown;
        float limit;   // Unigram: right as long as the sum is not larger in size
        double total;  // Unigram: what it adds to the sum
        uint32_t ids[kIds];
    };

    struct Place {  // where a part is, or would be
        uint64_t key[2];
        Entry* pair;
    };

    Place place(const char* part, size_t size) {
        Place out{{load(part), load(part + 8)}, nullptr};  // there is room to read behind every text
        out.key[0] &= kFirst[std::min<size_t>(size, 8)];
        out.key[1] &= kFirst[size < 8 ? 0 : std::min<size_t>(size - 8, 8)];
        const uint64_t mixed =
            mix(out.key[0] ^ std::rotl(out.key[1] * 0x9E3779B97F4A7C15, 23));
        out.pair = &entries_[(mixed >> 20 & (kEntries / 2 - 1)) * 2];
#ifdef __GNUC__
        __builtin_prefetch(out.pair);
#endif
        return out;
    }

    static bool holds(const Entry& entry, const Place& place, size_t size) {
        return entry.size == size && entry.key[0] == place.key[0] && entry.key[1] == place.key[1];
    }

    // The entry of the part; if it is not there (found: false) one to be filled.
    static Entry* find(const Place& place, size_t size, bool& found) {
        Entry* pair = place.pair;
        found = true;
        if (holds(pair[0], place, size)) return pair;
        if (holds(pair[1], place, size)) return pair + 1;
        found = false;
        if (pair[0].size) pair[1] = pair[0];
        std::memcpy(pair[0].key, place.key, sizeof place.key);
        pair[0].size = 0;
        return pair;
    }

  private:
    static constexpr size_t kEntries = 1 << 16;  // 4 MB
    static constexpr uint64_t kFirst[9] = {0,           0xFF,           0xFFFF,           0xFFFFFF,          0xFFFFFFFF,
                                           0xFFFFFFFFFF, 0xFFFFFFFFFFFF, 0xFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF};

    // Large pages where Linux has them: the entries are all over the table, and address translation is half the cost.
    struct Free {
        void operator()(Entry* entries) const { operator delete[](entries, std::align_val_t(kAlignment)); }
    };
    static Entry* allocate() {
        void* memory = operator new[](kEntries * sizeof(Entry), std::align_val_t(kAlignment));
#ifdef __linux__
        madvise(memory, kEntries * sizeof(Entry), MADV_HUGEPAGE);
#endif
        return new (memory) Entry[kEntries];
    }
    static constexpr size_t kAlignment = 1 << 21;
    std::unique_ptr<Entry[], Free> entries_{allocate()};
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

class Encoder {
  public:
    // What one call needs for itself; kept for the next call, so that its cache is warm.
    struct Worker {
        Buffer normalized;
        Cache cache;
        std::vector<Token> tokens;
        Bpe::Scratch bpe;
        Unigram::Scratch unigram;
        Sum sum;
        bool after_unknown;
    };

    Encoder(const std::vector<std::string>& texts, Options options, std::optional<Normalizer> normalizer,
            std::optional<Bpe> bpe, std::optional<Unigram> unigram, Trie::Keys symbols)
        : options_(options),
          normalizer_(std::move(normalizer)),
          cuts_(texts, options.words),
          bpe_(std::move(bpe)),
          unigram_(std::move(unigram)) {
        has_symbols_ = !symbols.empty();
        symbols_.build(std::move(symbols));
        singles_.fill(kNone);
        for (uint32_t id = 0; id < texts.size(); id++)
            if (texts[id].size() == 1) singles_[static_cast<unsigned char>(texts[id][0])] = id;
    }

    // first: the text starts the whole text (dummy prefix). Safe from many threads.
    void encode(std::string_view text, bool first, Ids& ids) const {
        std::unique_ptr<Worker> worker = take();
        if (normalizer_)
            normalizer_->normalize(text, first, worker->normalized);
        else
            internalize(text, worker->normalized);
        worker->sum = {};
        worker->after_unknown = false;
        ids.room(text.size() / 4 + 16);
        const std::string_view view = worker->normalized.view();
        if (has_symbols_)
            cut_out_symbols(view, *worker, ids);
        else
            encode_stretch(view.data(), view.data() + view.size(), *worker, ids);
        give_back(std::move(worker));
    }

  private:
    static void internalize(std::string_view text, Buffer& out) {
        out.clear();
        const std::string converted = to_internal(text);
        out.add(converted.data(), converted.size());
        out.seal();
    }

    std::unique_ptr<Worker> take() const {
        {
            const std::lock_guard lock(*mutex_);
            if (!idle_.empty()) {
                std::unique_ptr<Worker> worker = std::move(idle_.back());
                idle_.pop_back();
                return worker;
            }
        }
        return std::make_unique<Worker>();
    }

    void give_back(std::unique_ptr<Worker> worker) const {
        if (worker->normalized.size() > 1 << 20) {  // what a long text needed is not kept
            worker->normalized = {};
            worker->tokens = {};
            worker->bpe = {};
            worker->unigram = {};
        }
        const std::lock_guard lock(*mutex_);
        idle_.push_back(std::move(worker));
    }

    // BPE: a user-defined symbol is one id wherever it stands, the longest first, and merges with nothing.
    void cut_out_symbols(std::string_view text, Worker& worker, Ids& ids) const {
        const char *at = text.data(), *from = at, *const end = at + text.size();
        while (at < end) {
            const char* longest = nullptr;
            uint32_t id = kNone, node = Trie::root();
            for (const char* to = at; to < end && symbols_.step(node, static_cast<unsigned char>(*to)); to++)
                if (symbols_.id(node) != kNone) longest = to + 1, id = symbols_.id(node);
            if (!longest) {
                at += std::min(size_t(end - at), character_size(static_cast<unsigned char>(*at)));
                continue;
            }
            encode_stretch(from, at, worker, ids);
            ids.add(id);
            worker.after_unknown = false;
            at = from = longest;
        }
        encode_stretch(from, end, worker, ids);
    }

    // In batches: first find the parts and ask for their cache entries, then take the ids out, when the memory has come.
    void encode_stretch(const char* at, const char* const end, Worker& worker, Ids& ids) const {
        struct Part {
            const char* at;
            size_t size;
            Cache::Place place;
        };
        std::array<Part, 32> parts;
        size_t count = 0;
        const auto flush = [&] {
            for (size_t i = 0; i < count; i++) encode_part(parts[i].at, parts[i].size, parts[i].place, worker, ids);
            count = 0;
        };
        const auto add = [&](const char* from, const char* to) {
            Part& part = parts[count++];
            part.at = from;
            part.size = size_t(to - from);
            if (part.size > 1) part.place = worker.cache.place(from, part.size);
            if (count == parts.size()) flush();
        };
        uint32_t before = 0;
        const char* from = at;
        for (; at < end; at += std::min<size_t>(64, size_t(end - at))) {
            for (uint64_t starts = cuts_.starts(at, std::min<size_t>(64, size_t(end - at)), before); starts;
                 starts &= starts - 1) {
                const char* to = at + std::countr_zero(starts);
                if (to > from) add(from, to);
                from = to;
            }
        }
        if (end > from) add(from, end);
        flush();
    }

    void encode_part(const char* part, size_t size, Cache::Place& place, Worker& worker, Ids& ids) const {
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

    // Without the cache: BPE merges, or Viterbi with the exact sum.
    void encode_new(std::string_view part, Worker& worker, Ids& ids) const {
        if (bpe_) {
            bpe_->encode(part, worker.bpe, worker.tokens);
            emit(part.data(), worker, ids);
            return;
        }
        Sum& sum = worker.sum;
        for (; sum.exact_at < ids.size(); sum.exact_at++) sum.exact = unigram_->add(sum.exact, ids.data()[sum.exact_at]);
        sum.exact = unigram_->exact(part, sum.exact, worker.unigram, worker.tokens);
        emit(part.data(), worker, ids);
        sum = {sum.exact, 0, sum.exact, ids.size()};
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
            encode_new(part, worker, ids);
            return false;
        }
        Ids own;
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
        const std::string_view real = byte == ' ' ? "\xE2\x96\x81" : byte == kRealSpace ? " " : std::string_view(&byte, 1);
        for (const char c : real) ids.add((*options_.byte_ids)[static_cast<unsigned char>(c)]);
    }

    Options options_;
    std::optional<Normalizer> normalizer_;
    Cuts cuts_;
    std::optional<Bpe> bpe_;
    std::optional<Unigram> unigram_;
    Trie symbols_;
    bool has_symbols_;
    std::array<uint32_t, 256> singles_;  // byte → the piece that is this one character
    std::unique_ptr<std::mutex> mutex_ = std::make_unique<std::mutex>();
    mutable std::vector<std::unique_ptr<Worker>> idle_;
};

}  // namespace tinylm::sentencepiece
