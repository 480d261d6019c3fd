// The pieces of a WordPiece vocabulary as two tries: those that begin a word, and those that continue one ("##").
// Edges of all nodes share one hash table.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace tinylm {

constexpr uint32_t kNoId = 0xFFFFFFFF;

class Trie {
  public:
    // Tokens that begin with "##" continue a word, without these two characters.
    Trie(const std::vector<std::string_view>& tokens, const std::vector<uint32_t>& ids) {
        size_t bytes = 0;
        for (std::string_view token : tokens) bytes += token.size();
        size_t slots = 1024;
        while (slots < 2 * bytes) slots *= 2;
        edges_.resize(slots);
        for (size_t i = 0; i < tokens.size(); i++) {
            std::string_view token = tokens[i];
            const bool continues = token.starts_with("##");
            if (continues) token.remove_prefix(2);
            uint32_t node = continues ? kContinuing : kBeginning;
            for (char byte : token) node = make_child(node, uint8_t(byte));
            if (!token.empty()) ids_[node] = ids[i];
        }
    }

    // The longest piece that `word` begins with, then the longest that continues it, ...; false for a dead end.
    bool match(std::string_view word, std::vector<uint32_t>& found) const {
        found.clear();
        for (size_t start = 0; start < word.size();) {
            uint32_t node = start ? kContinuing : kBeginning, longest = kNoId;
            size_t end = start;
            for (size_t i = start; i < word.size(); i++) {
                node = child(node, uint8_t(word[i]));
                if (node == kNoId) break;
                if (ids_[node] != kNoId) longest = ids_[node], end = i + 1;
            }
            if (longest == kNoId) return false;
            found.push_back(longest);
            start = end;
        }
        return true;
    }

  private:
    static constexpr uint32_t kBeginning = 0, kContinuing = 1;

    struct Edge {
        uint64_t key = 0;  // the node and the byte, and one; 0: free
        uint32_t child = kNoId;
    };

    static uint64_t key_of(uint32_t node, uint8_t byte) { return (uint64_t(node) << 8 | byte) + 1; }

    size_t slot_of(uint64_t key) const {
        const uint64_t mixed = key * 0x9E3779B97F4A7C15u;
        size_t slot = size_t(mixed ^ mixed >> 32) & (edges_.size() - 1);
        while (edges_[slot].key && edges_[slot].key != key) slot = (slot + 1) & (edges_.size() - 1);
        return slot;
    }

    uint32_t child(uint32_t node, uint8_t byte) const { return edges_[slot_of(key_of(node, byte))].child; }

    uint32_t make_child(uint32_t node, uint8_t byte) {
        Edge& edge = edges_[slot_of(key_of(node, byte))];
        if (!edge.key) {
            edge = {key_of(node, byte), uint32_t(ids_.size())};
            ids_.push_back(kNoId);
        }
        return edge.child;
    }

    std::vector<Edge> edges_;
    std::vector<uint32_t> ids_ = {kNoId, kNoId};  // of each node: the id of the piece that ends there
};

}  // namespace tinylm
