// The expectation step of Unigram's training: forward and backward sums over all segmentations. No Python here. Source:
// Kudo 2018 (Subword regularization), section 3.2. Probabilities are multiplied, not their logarithms added; long runs
// are rescaled by powers of two, which is exact. Sums go over a fixed number of shards in a fixed order: the result
// does not depend on the number of threads.
#pragma once

#include "unigram_lattice.hpp"

namespace tinylm::unigram_training {

class Expectation {
  public:
    explicit Expectation(const Lattice& lattice) : lattice_(lattice) {}

    // E-step: how often each piece is expected over all segmentations of all words, by forward and backward sums.
    std::vector<double> expectations(double& likelihood) const {
        std::vector<std::vector<double>> expected(kShards);
        std::vector<double> likelihoods(kShards, 0);
        lattice_.in_shards([&](size_t shard, size_t first, size_t last) {
            expected[shard].assign(lattice_.pieces.size(), 0);
            Sums sums;
            for (size_t i = first; i < last; i++)
                likelihoods[shard] += expect(lattice_.words[i], expected[shard], sums);
        });
        for (double part : likelihoods) likelihood += part;
        return Lattice::sum(expected);
    }

  private:
    struct Sums {
        std::vector<double> forward, backward;
        std::vector<int> forward_scale, backward_scale;  // of each block of kLongest places: stored = true * 2^scale
    };

    // Returns count * log(sum over all segmentations of the word) and adds the word's expectations.
    double expect(const Lattice::Word& word, std::vector<double>& expected, Sums& sums) const {
        auto& [forward, backward, forward_scale, backward_scale] = sums;
        const size_t size = word.size, blocks = size / kLongest + 1;
        const uint32_t* first = &lattice_.first_edge[word.start];
        forward.assign(size + kLongest + 1, 0);
        backward.assign(size + kLongest + 1, 0);
        forward_scale.assign(blocks + 1, 0);
        backward_scale.assign(blocks + 1, 0);
        forward[0] = 1;
        for (size_t at = 0; at < size; at++) {
            if (at % kLongest == 0 && at) rescale_forward(sums, at);
            if (!lattice_.known(word.start + at)) forward[at + 1] += forward[at] * lattice_.unknown;
            for (uint32_t i = first[at]; i < first[at + 1]; i++)
                forward[at + lattice_.edges[i].size] += forward[at] * lattice_.probabilities[lattice_.edges[i].id];
        }
        if (size % kLongest == 0) forward_scale[size / kLongest] = forward_scale[size / kLongest - 1];
        backward[size] = 1;
        for (size_t at = size; at-- > 0;) {
            const size_t block = at / kLongest, border = (block + 1) * kLongest;
            if (at + 1 == border) {  // the block behind is complete
                double most = 0;
                for (size_t i = border; i <= std::min(size, border + kLongest - 1); i++)
                    most = std::max(most, backward[i]);
                backward_scale[block] = backward_scale[block + 1] - std::ilogb(most);
            }
            const double behind = power(backward_scale[block] - backward_scale[block + 1]);
            double sum = 0;
            if (!lattice_.known(word.start + at))
                sum = lattice_.unknown * backward[at + 1] * (at + 1 < border ? 1 : behind);
            for (uint32_t i = first[at]; i < first[at + 1]; i++) {
                const size_t end = at + lattice_.edges[i].size;
                sum += lattice_.probabilities[lattice_.edges[i].id] * backward[end] * (end < border ? 1 : behind);
            }
            backward[at] = sum;
        }
        const int scale = forward_scale[size / kLongest];
        for (size_t at = 0; at < size; at++) {
            const size_t block = at / kLongest, border = (block + 1) * kLongest;
            const double here = forward[at] * word.count / forward[size];
            const int shift = scale - forward_scale[block];
            const double inside = here * power(shift - backward_scale[block]);
            const double behind = here * power(shift - backward_scale[block + 1]);
            for (uint32_t i = first[at]; i < first[at + 1]; i++) {
                const auto [id, length] = lattice_.edges[i];
                const size_t end = at + length;
                expected[id] += lattice_.probabilities[id] * backward[end] * (end < border ? inside : behind);
            }
        }
        return word.count * (std::log(forward[size]) - scale * std::log(2.0));
    }

    static double power(int exponent) { return exponent ? std::ldexp(1.0, exponent) : 1; }

    // Brings the sums that later places start from near 1, before anything is added to those of a new block.
    static void rescale_forward(Sums& sums, size_t at) {
        double most = 0;
        for (size_t i = at; i < at + kLongest; i++) most = std::max(most, sums.forward[i]);
        const int shift = -std::ilogb(most);
        for (size_t i = at; i < at + kLongest; i++) sums.forward[i] = std::ldexp(sums.forward[i], shift);
        sums.forward_scale[at / kLongest] = sums.forward_scale[at / kLongest - 1] + shift;
    }

    const Lattice& lattice_;
};

}  // namespace tinylm::unigram_training
