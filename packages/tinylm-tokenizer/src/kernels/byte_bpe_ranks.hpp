// Which neighbours merge in a vocabulary of ranks (tiktoken): any two whose bytes together are a token, the lowest id
// first. No list of pairs is kept: the joined bytes are looked up. merge.hpp asks.
#pragma once

#include <string_view>
#include <vector>

#include "byte_bpe_table.hpp"

namespace tinylm {

// Most joined bytes are no token, and a bit per hash says so without a look at the table.
class RankRules {
  public:
    RankRules(const PieceTable& short_tokens, const LongTokens& long_tokens)
        : short_tokens_(short_tokens), long_tokens_(long_tokens), two_(1 << 16, kNone), filter_(kBits / 64) {}

    void add(std::string_view token, uint64_t hash, uint32_t id) {
        if (token.size() == 2) two_[uint8_t(token[0]) | uint8_t(token[1]) << 8] = id;
        filter_[hash % kBits / 64] |= uint64_t(1) << hash % 64;
    }

    Merge find(const uint8_t* bytes, size_t size, uint32_t, uint32_t) const {
        uint32_t id = kNone;
        if (size == 2) {
            id = two_[bytes[0] | bytes[1] << 8];
        } else if (size <= kShort) {
            const Key key = key_of(bytes, size, true);
            const uint64_t hash = key.hash();
            if (maybe(hash)) id = short_tokens_.find_token(key, hash);
        } else if (size <= long_tokens_.longest()) {
            const std::string_view token(reinterpret_cast<const char*>(bytes), size);
            const uint64_t hash = LongTokens::hash(token);
            if (maybe(hash)) id = long_tokens_.find(token, hash);
        }
        return {id, id};
    }

    const uint32_t* two() const { return two_.data(); }

  private:
    static constexpr size_t kBits = size_t(1) << 21;

    bool maybe(uint64_t hash) const { return filter_[hash % kBits / 64] >> hash % 64 & 1; }

    const PieceTable& short_tokens_;
    const LongTokens& long_tokens_;
    std::vector<uint32_t> two_;  // two bytes, the first one the lower half of the place → id
    std::vector<uint64_t> filter_;
};

}  // namespace tinylm
