// The parts of a text → ids: looked up if they were there before, else encoded by BPE or Unigram. No Python here.
//
// A cached part of BPE is always right. Unigram's sums run through the whole text; unigram.hpp says up to which size of
// the sum a part may be taken from the cache, and beyond it is solved again with the exact sum.
#pragma once

#include <array>
#include <optional>

#include "ids.hpp"
#include "sentencepiece_cache.hpp"

namespace tinylm::sentencepiece {

using Ids = IdArray;

struct Options {
    bool bpe;
    bool words;         // each "▁" starts a part of its own, whatever the pieces hold
    bool fuse_unknown;  // neighbouring unknown characters become one id
    bool in_double;
    std::optional<uint32_t> unknown_id;
    std::optional<std::array<uint32_t, 256>> byte_ids;  // given: unknown characters become bytes
};

// The sum of Unigram's scores so far: exactly up to some id, and how large in size it can be by now. A sum ends at 10^5, so
// that adding a score is off by less than 2^-8.
struct Sum {
    double exact = 0;
    size_t exact_at = 0;  // ids
    double reach = 0;

    static double reach_of(double score) { return std::abs(score) + 0x1p-8; }
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

// place: in the worker's cache; only there for 2 to Cache::kBytes bytes.
struct Part {
    const char* at;
    size_t size;
    Cache::Place place;
};

class Parts {
  public:
    Parts(const std::vector<std::string>& texts, Options options, std::optional<Bpe> bpe,
          std::optional<Unigram> unigram)
        : options_(options), bpe_(std::move(bpe)), unigram_(std::move(unigram)) {
        const bool own_unknown = options.unknown_id && !options.byte_ids;
        for (Single& single : singles_)
            if (own_unknown) single = single_of(*options.unknown_id, unigram_ ? unigram_->unknown() : 0, true);
        for (uint32_t id = 0; id < texts.size(); id++)
            if (texts[id].size() == 1)
                singles_[static_cast<unsigned char>(texts[id][0])] = single_of(id, unigram_ ? unigram_->score(id) : 0, false);
    }

    // Adds the ids of parts that follow each other. What is known goes by here; the rest is encode_one's.
    void encode(const Part* parts, size_t count, Worker& worker, Ids& ids) const {
        uint32_t* out = ids.room_for(count * Cache::kIds);
        double reach = worker.sum.reach;
        bool after_unknown = worker.after_unknown;
        for (const Part *part = parts, *end = parts + count; part < end; part++) {
            if (options_.words && *part->at == ' ') after_unknown = false;
            if (part->size == 1) {
                const Single& single = singles_[static_cast<unsigned char>(*part->at)];
                if (reach < single.limit && !(after_unknown && single.unknown)) {
                    *out++ = single.id;
                    reach += single.reach;
                    after_unknown = single.unknown;
                    continue;
                }
            } else if (part->size <= Cache::kBytes) {
                const Cache::Entry* entry = Cache::find(part->place, part->size);
                if (entry && reach < entry->limit && !(after_unknown && entry->starts_unknown)) {
                    std::memcpy(out, entry->ids, sizeof entry->ids);
                    out += entry->count;
                    reach += entry->reach;
                    after_unknown = entry->ends_unknown;
                    continue;
                }
            }
            ids.grown_to(out);
            worker.sum.reach = reach;
            worker.after_unknown = after_unknown;
            encode_one(*part, worker, ids);
            reach = worker.sum.reach;
            after_unknown = worker.after_unknown;
            out = ids.room_for(size_t(end - part) * Cache::kIds);
        }
        ids.grown_to(out);
        worker.sum.reach = reach;
        worker.after_unknown = after_unknown;
    }

    // Makes the sum exact up to the last id.
    void settle(Worker& worker, const Ids& ids) const {
        if (unigram_) set_sum(worker, exact_sum(worker.sum, ids), ids);
    }

  private:
    // A byte that is a part of its own, as Cache::Entry. limit < 0: it has no id.
    struct Single {
        uint32_t id = kNone;
        bool unknown = true;
        double limit = -1, reach = 0;
    };

    Single single_of(uint32_t id, double score, bool unknown) const {
        if (!unigram_) return {id, unknown, kAlways, 0};
        return {id, unknown, unigram_->safe(), Sum::reach_of(score)};
    }

    double exact_sum(const Sum& sum, const Ids& ids) const {
        return unigram_->add(sum.exact, ids.data() + sum.exact_at, ids.size() - sum.exact_at);
    }

    static void set_sum(Worker& worker, double sum, const Ids& ids) { worker.sum = {sum, ids.size(), std::abs(sum)}; }

    [[gnu::noinline]] void encode_one(const Part& part, Worker& worker, Ids& ids) const {
        const std::string_view text(part.at, part.size);
        if (part.size == 1 && singles_[static_cast<unsigned char>(*part.at)].unknown) return encode_unknown(text, worker, ids);
        if (part.size == 1 || part.size > Cache::kBytes) return encode_new(text, worker, ids);
        const Cache::Entry* entry = Cache::find(part.place, part.size);
        if (!entry) {
            Cache::Entry& fresh = Cache::renew(part.place);
            if (!fill(fresh, text, worker, ids)) return;
            entry = &fresh;
        }
        const bool fuse = worker.after_unknown && entry->starts_unknown;  // its first id stands there already
        if (!(worker.sum.reach < entry->limit) || (fuse && unigram_)) return encode_new(text, worker, ids);
        ids.add(entry->ids + fuse, entry->count - fuse);
        worker.sum.reach += entry->reach;
        worker.after_unknown = entry->ends_unknown;
    }

    // Without the cache: BPE merges, or Viterbi with the exact sum.
    void encode_new(std::string_view part, Worker& worker, Ids& ids) const {
        if (bpe_) {
            bpe_->encode(part, worker.bpe, worker.tokens);
            emit(part.data(), worker, ids);
            return;
        }
        const double sum = unigram_->exact(part, exact_sum(worker.sum, ids), worker.unigram, worker.tokens);
        emit(part.data(), worker, ids);
        set_sum(worker, sum, ids);
    }

    // A character that no piece covers.
    void encode_unknown(std::string_view character, Worker& worker, Ids& ids) const {
        worker.tokens.assign(1, {kNone, uint32_t(character.size())});
        const double sum = unigram_ ? unigram_->add_unknown(exact_sum(worker.sum, ids)) : 0;
        emit(character.data(), worker, ids);
        if (unigram_) set_sum(worker, sum, ids);
    }

    // Encode a part that is new. If it fits into the cache it is put into the entry, else its ids are written here.
    bool fill(Cache::Entry& entry, std::string_view part, Worker& worker, Ids& ids) const {
        double limit = kAlways;
        if (unigram_)
            limit = unigram_->free(part, worker.unigram, worker.tokens);
        else
            bpe_->encode(part, worker.bpe, worker.tokens);
        double reach = 0;
        bool unknown = false;
        for (const Token& token : worker.tokens) {
            unknown |= token.id == kNone;
            if (unigram_) reach += Sum::reach_of(token.id == kNone ? unigram_->unknown() : unigram_->score(token.id));
        }
        // An id has a score; an unknown character has one that is not its id's if it has none, or shares it.
        const bool scored = !unknown || (worker.tokens.size() == 1 && options_.unknown_id && !options_.byte_ids);
        if (unigram_ && (!scored || worker.tokens.size() > Cache::kIds)) {
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
        entry.starts_unknown = fuses() && is_unknown(worker.tokens.front().id);
        entry.ends_unknown = fuses() && is_unknown(worker.tokens.back().id);
        entry.limit = std::nextafter(float(limit), -1.0f);
        entry.reach = reach;
        std::memcpy(entry.ids, own.data(), 4 * own.size());
        worker.after_unknown = after_unknown;
        return true;
    }

    // A Unigram of a tokenizer.json may find the unknown piece itself in a text.
    bool is_unknown(uint32_t id) const {
        return id == kNone || (options_.in_double && id == options_.unknown_id && !options_.byte_ids);
    }

    bool fuses() const { return options_.fuse_unknown && options_.unknown_id && !options_.byte_ids; }

    void emit(const char* text, Worker& worker, Ids& ids) const {
        for (const Token& token : worker.tokens) {
            const bool unknown = is_unknown(token.id);
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

    static constexpr double kAlways = std::numeric_limits<double>::infinity();

    Options options_;
    std::optional<Bpe> bpe_;
    std::optional<Unigram> unigram_;
    std::array<Single, 256> singles_;
};

}  // namespace tinylm::sentencepiece
