// A whole transformer over some new tokens, as `tinylm.model.Transformer` computes it, on packed or plain matrices: from
// token ids to logits in one call, so that a step of a small model is not spent on calling. No Python here.
//
// All threads of a team run `Decoder::run` together; each line of it that splits work ends at a barrier. Every token's
// numbers are computed in an order that depends on no other token, but where bfloat16 is multiplied as such:
// kernels_amx.cpp and kernels_avx512_bf16.cpp have another order for a token alone. Not here: the matrices (kernels.inc)
// and what stands between them (elementwise.inc). Next: module.cpp.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "packed.hpp"
#include "team.hpp"

namespace tinylm {

struct Projection {
    Packed matrix;
    const float* bias;
};

struct Norm {
    const float* weight;  // null: there is no such norm
    const float* bias;    // null: RMSNorm
};

struct Layer {
    Norm attention_norm, q_norm, k_norm, mlp_norm;
    Projection q, k, v, output, gate, up, down;  // gate's data is null: GELU
    int64_t window;                              // how many tokens a token attends to; 0: all before it
};

struct Shape {
    int width, heads, kv_heads, head_dim, mlp_width, vocabulary;
    float eps;
};

// The new tokens of some sequences, one sequence after the other, and where their keys and values are kept.
struct Step {
    int tokens, sequences;
    const int64_t *ids, *positions;  // (tokens,)
    const int64_t* starts;           // (sequences + 1,): a sequence's first token among these
    const int64_t* cached;           // (sequences,): how many tokens of it are in the cache already
    const int64_t* blocks;           // (sequences, blocks_stride): CacheView's, of each sequence
    int64_t blocks_stride;
    void *keys, *values;  // float, or bfloat16
    bool bfloat16;
    int64_t layer_stride, block_stride, head_stride, token_stride, block_size;
    const int64_t* rows;  // (row_count,): of which tokens logits are wanted
    int row_count;
    float* logits;  // (row_count, vocabulary)
};

struct Heads {
    int heads, kv_heads, size;  // heads of queries, and of keys and values; numbers of each
};

// Attention of one query head of one new token over what its sequence has in the cache, itself included. item: head by
// head, in each the step's tokens; q and out (tokens, heads, size).
inline void attend_one(const Kernels& kernels, const Step& step, const Heads& of, int64_t layer, int64_t window,
                       int sequence, int item, const float* q, float* out, float* scores) {
    const int head = item / step.tokens, token = item % step.tokens;
    const int64_t last = step.cached[sequence] + token - step.starts[sequence];
    const int64_t first = window ? std::max<int64_t>(0, last - window + 1) : 0;
    const int64_t at = layer * step.layer_stride + head / (of.heads / of.kv_heads) * step.head_stride;
    const int64_t* blocks = step.blocks + sequence * step.blocks_stride;
    const auto view = [&](void* memory) {
        const void* data = static_cast<char*>(memory) + at * (step.bfloat16 ? 2 : 4);
        return CacheView{data, blocks, step.block_size, step.block_stride, step.token_stride};
    };
    const size_t place = (size_t(token) * of.heads + size_t(head)) * of.size;
    const auto attend = step.bfloat16 ? kernels.attend_bfloat16 : kernels.attend;
    attend(q + place, view(step.keys), view(step.values), first, last, of.size, scores, out + place);
}

class Decoder {
  public:
    Shape shape;
    const Kernels* kernels;
    std::vector<Layer> layers;
    Packed embedding;                       // (vocabulary, width), plain
    const float* learned_positions;         // (context, width), or null
    const float *cos = nullptr, *sin = nullptr;  // (context, head_dim / 2), or null
    Norm final_norm;
    Projection head;

    void forward(const Step& step, Team& team) {
        make_room(step, team.size());
        team.run([&](int thread) { run(step, team, thread); });
    }

  private:
    using Rows = std::vector<float>;  // (tokens, numbers of each)

    struct Part {  // of a thread: the pieces of work from first(count) to first(count, 1) - 1
        int thread, threads;
        int first(int count, int further = 0) const { return int(int64_t(count) * (thread + further) / threads); }
    };

    void run(const Step& step, Team& team, int thread) {
        const int tokens = step.tokens, query_width = shape.heads * shape.head_dim;
        const Part part{thread, team.size()};
        const auto all = [&](auto&& work, int count) {  // splits count pieces of work, and waits for all of them
            for (int i = part.first(count); i < part.first(count, 1); ++i) work(i);
            team.barrier();
        };
        all([&](int token) { embed(step, token); }, tokens);
        for (size_t index = 0; index < layers.size(); ++index) {
            const Layer& layer = layers[index];
            all([&](int t) { norm_and_round(layer.attention_norm, row(x_, t, shape.width), t, tokens, layer.q.matrix); }, tokens);
            project(layer.q, normed_, q_, tokens, part);
            project(layer.k, normed_, k_, tokens, part);
            project(layer.v, normed_, v_, tokens, part);
            team.barrier();
            all([&](int token) { remember(step, layer, int64_t(index), token); }, tokens);
            all([&](int item) { attend(step, layer, int64_t(index), item, thread); }, tokens * shape.heads);
            all([&](int t) { round(row(attended_, t, query_width), t, tokens, layer.output.matrix); }, tokens);
            project(layer.output, attended_, x_, tokens, part, true);
            team.barrier();
            all([&](int t) { norm_and_round(layer.mlp_norm, row(x_, t, shape.width), t, tokens, layer.up.matrix); }, tokens);
            const bool gated = layer.gate.matrix.data;
            if (gated) project(layer.gate, normed_, gate_, tokens, part);
            project(layer.up, normed_, up_, tokens, part);
            team.barrier();
            all(
                [&](int t) {
                    float* up = row(up_, t, shape.mlp_width);
                    kernels->activate(gated ? row(gate_, t, shape.mlp_width) : nullptr, up, shape.mlp_width);
                    round(up, t, tokens, layer.down.matrix);
                },
                tokens);
            project(layer.down, up_, x_, tokens, part, true);
            team.barrier();
        }
        all([&](int r) { norm_and_round(final_norm, row(x_, int(step.rows[r]), shape.width), r, step.row_count, head.matrix); },
            step.row_count);
        linear(head, normed_, step.logits, step.row_count, part, false);
    }

    void embed(const Step& step, int token) {
        float* x = row(x_, token, shape.width);
        const size_t start = size_t(step.ids[token]) * size_t(shape.width);
        if (embedding.bits == 32) {
            std::memcpy(x, embedding.data + start * 4, size_t(shape.width) * 4);
        } else {
            const auto* row = reinterpret_cast<const uint16_t*>(embedding.data) + start;
            for (int i = 0; i < shape.width; ++i) x[i] = __builtin_bit_cast(float, uint32_t(row[i]) << 16);
        }
        if (!learned_positions) return;
        const float* position = learned_positions + step.positions[token] * shape.width;
        for (int i = 0; i < shape.width; ++i) x[i] += position[i];
    }

    // Norms and turns a token's queries and keys, and puts keys and values into the cache.
    void remember(const Step& step, const Layer& layer, int64_t index, int token) {
        const int size = shape.head_dim, sequence = sequence_[size_t(token)];
        const int64_t place = step.cached[sequence] + token - step.starts[sequence];
        const int64_t block = step.blocks[sequence * step.blocks_stride + place / step.block_size];
        const int64_t at =
            index * step.layer_stride + block * step.block_stride + place % step.block_size * step.token_stride;
        const auto turned = [&](const Norm& norm, float* head) {
            if (norm.weight) kernels->norm(head, norm.weight, norm.bias, shape.eps, size, head);
            const int64_t angle = step.positions[token] * (size / 2);
            if (cos) kernels->rotate(head, cos + angle, sin + angle, size);
        };
        for (int h = 0; h < shape.heads; ++h) turned(layer.q_norm, row(q_, token, shape.heads * size) + h * size);
        for (int h = 0; h < shape.kv_heads; ++h) {
            float* key = row(k_, token, shape.kv_heads * size) + h * size;
            turned(layer.k_norm, key);
            keep(step, step.keys, at + h * step.head_stride, key);
            keep(step, step.values, at + h * step.head_stride, row(v_, token, shape.kv_heads * size) + h * size);
        }
    }

    void keep(const Step& step, void* memory, int64_t at, const float* head) {
        if (step.bfloat16)
            kernels->round_bfloat16(head, shape.head_dim, static_cast<uint16_t*>(memory) + at);
        else
            std::memcpy(static_cast<float*>(memory) + at, head, size_t(shape.head_dim) * sizeof(float));
    }

    void attend(const Step& step, const Layer& layer, int64_t index, int item, int thread) {
        attend_one(*kernels, step, {shape.heads, shape.kv_heads, shape.head_dim}, index, layer.window,
                   sequence_[size_t(item % step.tokens)], item, q_.data(), attended_.data(),
                   scores_[size_t(thread)].data());
    }

    void norm_and_round(const Norm& norm, const float* x, int token, int tokens, const Packed& matrix) {
        float* y = row(normed_, token, shape.width);
        kernels->norm(x, norm.weight, norm.bias, shape.eps, shape.width, y);
        round(y, token, tokens, matrix);
    }

    void round(const float* x, int token, int tokens, const Packed& matrix) {
        if (kernels->split && matrix.splits()) kernels->split(x, matrix.inputs, token, tokens, columns_.data());
        if (matrix.plain()) return;
        Activations one = activations(matrix, x, 1);
        one.numbers += size_t(token) * matrix.padded_inputs();
        one.scales += size_t(token) * matrix.groups();
        one.sums += size_t(token) * matrix.groups();
        kernels->quantize(x, matrix.inputs, 1, one);
    }

    void project(const Projection& to, const Rows& x, Rows& y, int tokens, const Part& part, bool add = false) {
        linear(to, x, y.data(), tokens, part, add);
    }

    // x are the rows that were rounded last.
    void linear(const Projection& to, const Rows& x, float* y, int tokens, const Part& part, bool add) {
        const int blocks = to.matrix.blocks();
        kernels->linear(to.matrix, activations(to.matrix, x.data(), tokens), to.bias, y, size_t(to.matrix.outputs),
                        part.first(blocks), part.first(blocks, 1), add);
    }

    Activations activations(const Packed& matrix, const float* x, int tokens) {
        return {x, numbers_.data(), scales_.data(), sums_.data(), columns_.data(), tokens, matrix.padded_inputs(), matrix.groups()};
    }

    static float* row(Rows& rows, int token, int width) { return rows.data() + size_t(token) * size_t(width); }

    void make_room(const Step& step, int threads) {
        const size_t tokens = size_t(std::max(step.tokens, step.row_count));
        const auto grow = [](auto& memory, size_t size) {
            if (memory.size() < size) memory.resize(size);
        };
        const size_t queries = size_t(shape.heads) * shape.head_dim, keys = size_t(shape.kv_heads) * shape.head_dim;
        grow(x_, tokens * shape.width);
        grow(normed_, tokens * shape.width);
        grow(q_, tokens * queries);
        grow(attended_, tokens * queries);
        grow(k_, tokens * keys);
        grow(v_, tokens * keys);
        grow(up_, tokens * shape.mlp_width);
        grow(gate_, tokens * shape.mlp_width);
        const size_t widest = round_up(std::max({size_t(shape.width), queries, size_t(shape.mlp_width)}), kGroup);
        grow(numbers_, tokens * widest);
        grow(scales_, tokens * (widest / kGroup));
        grow(sums_, tokens * (widest / kGroup));
        if (kernels->split) grow(columns_, column_count(tokens, widest));
        grow(scores_, size_t(threads));
        grow(sequence_, tokens);
        int64_t longest = 0;
        for (int s = 0; s < step.sequences; ++s) {
            longest = std::max(longest, step.cached[s] + step.starts[s + 1] - step.starts[s]);
            std::fill(sequence_.begin() + step.starts[s], sequence_.begin() + step.starts[s + 1], s);
        }
        for (Rows& scores : scores_) grow(scores, size_t(longest));
    }

    Rows x_, normed_, q_, k_, v_, attended_, gate_, up_, scales_;
    std::vector<int8_t> numbers_;
    std::vector<int32_t> sums_;
    std::vector<uint16_t> columns_;
    std::vector<int> sequence_;
    std::vector<Rows> scores_;  // one for each thread
};

}  // namespace tinylm
