// A set of strings, walked byte by byte: which strings stand at a place of a text. No Python here. A double array (Aoe
// 1989): the child of a node for the byte c is the slot base + c, if that slot says that it is for c.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace tinylm::sentencepiece {

constexpr uint32_t kNone = 0xFFFFFFFF;

class Trie {
  public:
    using Keys = std::vector<std::pair<std::string, uint32_t>>;  // text (not empty) → id (below 2^23 - 1)

    Trie() : nodes_(kRoot + 1 + 256) {}

    void build(Keys keys) {  // of two equal texts the one with the smaller id stands
        std::sort(keys.begin(), keys.end());
        const auto same = [](auto& a, auto& b) { return a.first == b.first; };
        keys.erase(std::unique(keys.begin(), keys.end(), same), keys.end());
        struct Range {
            size_t first, last, depth;
            uint32_t node;
        };
        std::vector<Range> todo;
        std::vector<unsigned char> labels;
        base_used_.assign(nodes_.size(), false);
        if (!keys.empty()) todo.push_back({0, keys.size(), 0, kRoot});
        while (!todo.empty()) {
            auto [first, last, depth, node] = todo.back();
            todo.pop_back();
            if (keys[first].first.size() == depth) {
                nodes_[node].info |= (keys[first].second + 1) << 9;
                if (++first == last) continue;
            }
            labels.clear();
            for (size_t i = first; i < last; i++) {
                const auto label = static_cast<unsigned char>(keys[i].first[depth]);
                if (labels.empty() || labels.back() != label) labels.push_back(label);
            }
            const uint32_t base = nodes_[node].base = place(labels);
            for (size_t i = first; i < last;) {
                const auto label = static_cast<unsigned char>(keys[i].first[depth]);
                size_t end = i + 1;
                while (end < last && static_cast<unsigned char>(keys[end].first[depth]) == label) end++;
                todo.push_back({i, end, depth + 1, base + label});
                i = end;
            }
        }
        base_used_ = {};
    }

    static constexpr uint32_t root() { return kRoot; }

    bool step(uint32_t& node, unsigned char byte) const {
        const uint32_t next = nodes_[node].base + byte;
        if ((nodes_[next].info & 0x1FF) != byte + 1u) return false;
        node = next;
        return true;
    }

    uint32_t id(uint32_t node) const { return (nodes_[node].info >> 9) - 1; }  // kNone: no text ends here

  private:
    static constexpr uint32_t kRoot = 256;  // the slots below it are always free: where nodes without children point

    struct Node {
        uint32_t base = 0;
        uint32_t info = 0;  // low 9 bits: 1 + the byte that leads here, 0 in a free slot; above: 1 + the id, or 0
    };

    // A base at which all labels fall on free slots, and which no other node has: so the byte alone tells whose child
    // it is.
    uint32_t place(const std::vector<unsigned char>& labels) {
        size_t tried = 0;
        for (uint32_t slot = std::max(cursor_, kRoot + 1 + labels[0]);; slot++) {
            if (slot + 512 > nodes_.size()) {
                nodes_.resize(nodes_.size() * 2 + 1024);
                base_used_.resize(nodes_.size(), false);
            }
            if (nodes_[slot].info) continue;
            if (++tried > 64) cursor_ = std::max(cursor_, slot);  // a region with few free slots is left for good
            const uint32_t base = slot - labels[0];
            if (base_used_[base]) continue;
            bool free = true;
            for (size_t i = 1; i < labels.size() && free; i++) free = !nodes_[base + labels[i]].info;
            if (!free) continue;
            for (unsigned char label : labels) nodes_[base + label].info = label + 1u;
            base_used_[base] = true;
            return base;
        }
    }

    std::vector<Node> nodes_;
    std::vector<bool> base_used_;
    uint32_t cursor_ = 0;
};

}  // namespace tinylm::sentencepiece
