// Text → ids for a vocabulary of the SentencePiece family. No Python here. The readable versions are
// sentencepiece_bpe.py and unigram.py.
//
// The normalised text is cut where no piece can cross, most often before each "▁" (sentencepiece_cuts.hpp), and its
// parts are encoded one by one (sentencepiece_parts.hpp). Cutting is exact: a merge or a token that crossed the cut
// would be a piece that holds the two characters beside it, and there is none. A long text is normalised and cut a
// block at a time.
#pragma once

#include "idle.hpp"
#include "sentencepiece_cuts.hpp"
#include "sentencepiece_normalizer.hpp"
#include "sentencepiece_parts.hpp"

namespace tinylm::sentencepiece {

// What a text leaves to the one that goes on behind it, where no piece crosses.
struct State {
    double sum = 0;  // of Unigram's scores
    bool after_unknown = false;
};

class Encoder {
  public:
    Encoder(const std::vector<std::string>& texts, Options options, Normalizer normalizer, std::optional<Bpe> bpe,
            std::optional<Unigram> unigram, Trie::Keys symbols)
        : normalizer_(std::move(normalizer)),
          cuts_(texts, options.words),
          parts_(texts, options, std::move(bpe), std::move(unigram)),
          has_symbols_(!symbols.empty()) {
        symbols_.build(std::move(symbols));
        idle_.give_back(std::make_unique<Worker>());
    }

    // A text that is being encoded.
    struct Reading {
        Normalizer::Reading text;
        bool more = true;
    };

    // first: the text starts the whole text (dummy prefix). Each text that is encoded at the same time has a worker.
    Reading begin(std::string_view text, bool first, Worker& worker, State state = {}) const {
        worker.normalized.clear();
        worker.sum = {state.sum, 0, std::abs(state.sum)};
        worker.after_unknown = state.after_unknown;
        return {{text, first}};
    }

    // Adds the ids of the next block of the text to `ids`; false: there is none.
    bool next(Reading& reading, Worker& worker, Ids& ids) const {
        if (!reading.more) return false;
        const size_t enough = has_symbols_ ? std::string_view::npos : std::max(kBlock, 2 * worker.normalized.size());
        reading.more = normalizer_.read(reading.text, enough, worker.normalized);
        const std::string_view view = worker.normalized.view();
        if (has_symbols_)
            cut_out_symbols(view, worker, ids);
        else
            worker.normalized.drop(encode_stretch(view, !reading.more, worker, ids));
        return true;
    }

    // Forgets the ids up to here, which somebody has taken.
    void clear(Worker& worker, Ids& ids) const {
        parts_.settle(worker, ids);
        worker.sum.exact_at = 0;
        ids.clear();
    }

    State state(Worker& worker, const Ids& ids) const {
        parts_.settle(worker, ids);
        return {worker.sum.exact, worker.after_unknown};
    }

    void encode(std::string_view text, bool first, Worker& worker, Ids& ids, State state = {}) const {
        ids.expect(text.size() + 16);
        for (Reading reading = begin(text, first, worker, state); next(reading, worker, ids);) {}
    }

    std::unique_ptr<Worker> take() const {
        std::unique_ptr<Worker> worker = idle_.take();
        return worker ? std::move(worker) : std::make_unique<Worker>();
    }

    void give_back(std::unique_ptr<Worker> worker) const {
        if (worker->normalized.capacity() > 1 << 20) {  // what a long part needed is not kept
            worker->normalized = {};
            worker->tokens = {};
            worker->bpe = {};
            worker->unigram = {};
        }
        idle_.give_back(std::move(worker));
    }

    void after_fork() { idle_.after_fork(); }

  private:
    static constexpr size_t kBlock = 1 << 16;  // bytes that are normalised at a time: the processor's cache holds them

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
            encode_stretch({from, size_t(at - from)}, true, worker, ids);
            ids.add(id);
            worker.after_unknown = false;
            at = from = longest;
        }
        encode_stretch({from, size_t(end - from)}, true, worker, ids);
    }

    // In batches: first find the parts and ask for their cache entries, then take the ids out, when the memory has
    // come. Returns how far it came: unless the stretch is final, more text may belong to its last part, and spaces may
    // go.
    size_t encode_stretch(std::string_view text, bool final, Worker& worker, Ids& ids) const {
        std::array<Part, 32> parts;
        size_t count = 0;
        const auto flush = [&] {
            parts_.encode(parts.data(), count, worker, ids);
            count = 0;
        };
        const auto add = [&](const char* from, const char* to) {
            Part& part = parts[count++];
            part.at = from;
            part.size = size_t(to - from);
            if (part.size > 1) part.place = worker.cache.place(from, part.size);
            if (count == parts.size()) flush();
        };
        if (!final)
            while (!text.empty() && (text.back() == ' ' || text.back() == kRealSpace)) text.remove_suffix(1);
        uint32_t before = 0;
        const char *at = text.data(), *from = at, *const end = at + text.size();
        for (; at < end; at += std::min<size_t>(64, size_t(end - at))) {
            for (uint64_t starts = cuts_.starts(at, std::min<size_t>(64, size_t(end - at)), before); starts;
                 starts &= starts - 1) {
                const char* to = at + std::countr_zero(starts);
                if (to > from) add(from, to);
                from = to;
            }
        }
        if (final && end > from) add(from, end);
        flush();
        return size_t((final ? end : from) - text.data());
    }

    Normalizer normalizer_;
    Cuts cuts_;
    Parts parts_;
    Trie symbols_;
    bool has_symbols_;
    Idle<Worker> idle_;
};

}  // namespace tinylm::sentencepiece
