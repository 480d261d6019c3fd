// Text → ids for a vocabulary of the SentencePiece family. No Python here. The readable versions are
// sentencepiece_bpe.py and unigram.py.
//
// The normalised text is cut where no piece can cross, most often before each "▁", and a cache keeps the ids of the short
// parts. Cutting is exact: a merge or a token that crossed the cut would be a piece that holds the two characters beside
// it, and there is none. Unigram's sums run through the whole text; unigram.hpp says when a cached part is still right.
#pragma once

#include <mutex>
#include <optional>

#include "sentencepiece_parts.hpp"

namespace tinylm::sentencepiece {

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
