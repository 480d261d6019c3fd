// The first vocabulary of Unigram's training, from the sorted suffixes of the words: the pieces, and where they stand.
// No Python here. Source: Kudo 2018 (Subword regularization), section 3.2.
#pragma once

#include <stdexcept>

#include "sentencepiece_words.hpp"
#include "unigram_lattice.hpp"

namespace tinylm::unigram_training {

class Seed {
  public:
    Seed(Lattice& lattice, const sentencepiece::Classes& classes, size_t longest)
        : lattice_(lattice), classes_(classes), longest_(longest) {}

    // The first vocabulary: every character, and of all substrings that occur more than once (and not always with the
    // same character behind them) the `most` with the highest count * length.
    void make(size_t most) {
        const std::vector<Suffix> suffixes = sorted_suffixes();
        std::vector<uint8_t> common(suffixes.size());  // characters that a suffix shares with the one before
        for (size_t i = 1; i < suffixes.size(); i++) common[i] = shared(suffixes[i - 1], suffixes[i]);
        collect(suffixes, common, most);
        make_edges(suffixes, common);
        double sum = 0;
        for (const Lattice::Piece& piece : lattice_.pieces) sum += piece.weight;
        for (Lattice::Piece& piece : lattice_.pieces) piece.log_p = std::log(piece.weight) - std::log(sum);
        lattice_.update();
    }

  private:
    struct Suffix {
        uint64_t key;  // its first characters, packed
        uint32_t at;
        uint32_t size;  // up to the end of the word, and longest_
        double count;
    };

    uint8_t shared(const Suffix& a, const Suffix& b) const {
        const uint32_t most = std::min(a.size, b.size);
        uint32_t i = 0;
        while (i < most && lattice_.text[a.at + i] == lattice_.text[b.at + i]) i++;
        return uint8_t(i);
    }

    std::vector<Suffix> sorted_suffixes() const {
        std::u32string alphabet(lattice_.text);
        std::sort(alphabet.begin(), alphabet.end());
        alphabet.erase(std::unique(alphabet.begin(), alphabet.end()), alphabet.end());
        int bits = 1;
        while (alphabet.size() >> bits) bits++;  // ranks from 1 on: 0 is "the word has ended"
        const uint32_t packed = uint32_t(std::min<size_t>(64 / size_t(bits), kLongest));
        std::vector<uint32_t> rank(alphabet.empty() ? 0 : alphabet.back() + 1);
        for (size_t i = 0; i < alphabet.size(); i++) rank[alphabet[i]] = uint32_t(i) + 1;
        std::vector<Suffix> suffixes;
        suffixes.reserve(lattice_.text.size());
        for (const Lattice::Word& word : lattice_.words)
            for (uint32_t i = 0; i < word.size; i++) {
                const auto size = uint32_t(std::min<size_t>(word.size - i, longest_));
                uint64_t key = 0;
                for (uint32_t j = 0; j < packed; j++)
                    key = key << bits | (j < size ? rank[lattice_.text[word.start + i + j]] : 0);
                suffixes.push_back({key, word.start + i, size, word.count});
            }
        std::sort(suffixes.begin(), suffixes.end(), [&](const Suffix& a, const Suffix& b) {
            if (a.key != b.key) return a.key < b.key;
            const int order = lattice_.text.compare(a.at, a.size, lattice_.text, b.at, b.size);
            return order ? order < 0 : a.at < b.at;
        });
        return suffixes;
    }

    // The candidates, by a stack over the tree of common prefixes (Abouelhoda et al. 2004): a substring that is
    // followed by different characters, or ends its word, is a node of that tree; the suffixes below it are its
    // occurrences.
    void collect(const std::vector<Suffix>& suffixes, const std::vector<uint8_t>& common, size_t most) {
        struct Node {
            uint32_t size;
            double count;
            uint32_t at;
        };
        std::vector<Node> stack;
        std::vector<Lattice::Piece> characters, candidates;
        const auto close = [&](uint32_t down_to) {
            while (!stack.empty() && stack.back().size > down_to) {
                const Node node = stack.back();
                stack.pop_back();
                if (node.size > 1 && node.count >= 2 && classes_.allow({lattice_.text.data() + node.at, node.size}))
                    candidates.push_back({node.at, node.size, node.count * node.size, 0, 0});
                if (!stack.empty() && stack.back().size >= down_to)
                    stack.back().count += node.count;
                else if (down_to > 0)
                    stack.push_back({down_to, node.count, node.at});
            }
        };
        for (size_t i = 0; i < suffixes.size(); i++) {
            const Suffix& suffix = suffixes[i];
            close(common[i]);
            if (common[i] == 0) characters.push_back({suffix.at, 1, 0, 0, 0});
            characters.back().weight += suffix.count;
            if (!stack.empty() && stack.back().size == suffix.size)
                stack.back().count += suffix.count;
            else
                stack.push_back({suffix.size, suffix.count, suffix.at});
        }
        close(0);
        const auto better = [&](const Lattice::Piece& a, const Lattice::Piece& b) {
            return a.weight != b.weight ? a.weight > b.weight
                                        : lattice_.text.compare(a.at, a.size, lattice_.text, b.at, b.size) < 0;
        };
        std::sort(characters.begin(), characters.end(), better);
        if (candidates.size() > most) {
            std::nth_element(candidates.begin(), candidates.begin() + ptrdiff_t(most), candidates.end(), better);
            candidates.resize(most);
        }
        std::sort(candidates.begin(), candidates.end(), better);
        lattice_.pieces = std::move(characters);
        lattice_.pieces.insert(lattice_.pieces.end(), candidates.begin(), candidates.end());
        if (lattice_.pieces.size() >= kUnknown) throw std::length_error("wanted fewer than 134 million seed pieces");
        for (uint32_t i = 0; i < lattice_.pieces.size(); i++) lattice_.pieces[i].order = i;
        std::sort(lattice_.pieces.begin(), lattice_.pieces.end(), [&](auto& a, auto& b) {
            return lattice_.text.compare(a.at, a.size, lattice_.text, b.at, b.size) < 0;
        });
    }

    // Which pieces begin at each place: those pieces, in sorted order, that are prefixes of the suffix there. Twice
    // over the suffixes: first to count, then to fill.
    void make_edges(const std::vector<Suffix>& suffixes, const std::vector<uint8_t>& common) {
        lattice_.first_edge.assign(lattice_.text.size() + 1, 0);
        for (const bool fill : {false, true}) {
            std::vector<uint32_t> open;
            uint32_t next = 0;
            for (size_t i = 0; i < suffixes.size(); i++) {
                const Suffix& suffix = suffixes[i];
                while (!open.empty() && lattice_.pieces[open.back()].size > common[i]) open.pop_back();
                while (next < lattice_.pieces.size() && lattice_.pieces[next].size <= suffix.size &&
                       lattice_.text.compare(suffix.at, lattice_.pieces[next].size, lattice_.piece(next)) == 0)
                    open.push_back(next++);
                if (!fill) {
                    lattice_.first_edge[suffix.at + 1] = uint32_t(open.size());
                    continue;
                }
                Lattice::Edge* edge = &lattice_.edges[lattice_.first_edge[suffix.at]];
                for (uint32_t id : open) *edge++ = {id, lattice_.pieces[id].size};
            }
            if (fill) break;
            uint64_t edges = 0;
            for (uint32_t& places : lattice_.first_edge) places = uint32_t(edges += places);
            if (edges > UINT32_MAX) throw std::length_error("pieces stand in the distinct words at 4 G places");
            lattice_.edges.resize(lattice_.first_edge.back());
        }
    }

    Lattice& lattice_;
    const sentencepiece::Classes& classes_;
    const size_t longest_;
};

}  // namespace tinylm::unigram_training
