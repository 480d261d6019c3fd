// Loose functions for Python: attention over the cache, and GELU, where PyTorch has the matrices. Next: elementwise.inc.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "cache_check.hpp"

namespace tinylm {
namespace {

// Attention of a step's tokens (tokens, heads, size) in one layer, whose keys and values are in the cache already.
void attend_step(Array<const float, 3> q, Places starts, Places cached, Tables blocks, Memory keys, Memory values,
                 std::vector<int64_t> strides, int64_t block_size, int kv_heads, int64_t layer, int64_t window,
                 Array<float, 3> out, const std::string& instruction_set, int threads) {
    const Heads of{int(q.shape(1)), kv_heads, int(q.shape(2))};
    const Step step{int(q.shape(0)), int(cached.size()), nullptr, nullptr, starts.data(), cached.data(), blocks.data(),
                    int64_t(blocks.shape(1)), keys.data(), values.data(), is_bfloat16(keys, values), strides.at(0),
                    strides.at(1), strides.at(2), strides.at(3), block_size, nullptr, 0, nullptr};
    if (q.size() != out.size() || starts.size() != cached.size() + 1 || blocks.shape(0) != cached.size() ||
        starts.data()[0] != 0 || starts.data()[cached.size()] != int64_t(q.shape(0)) || block_size < 1 ||
        kv_heads < 1 || of.heads % kv_heads || layer < 0)
        throw std::invalid_argument("wanted q and out (tokens, heads, size), and a start, a length and blocks for each sequence");
    check_cache(step, keys, values, layer + 1, kv_heads, of.size);
    const Kernels* kernels = by_name(instruction_set);
    const nb::gil_scoped_release release;
    std::vector<int> sequence(size_t(step.tokens));
    int64_t longest = 0;
    for (int s = 0; s < step.sequences; ++s) {
        longest = std::max(longest, step.cached[s] + step.starts[s + 1] - step.starts[s]);
        std::fill(sequence.begin() + step.starts[s], sequence.begin() + step.starts[s + 1], s);
    }
    Team& team = team_of(threads);
    std::vector<std::vector<float>> scores(size_t(team.size()), std::vector<float>(size_t(longest)));
    team.run([&](int thread) {
        const int64_t items = int64_t(step.tokens) * of.heads;
        for (int64_t item = items * thread / team.size(); item < items * (thread + 1) / team.size(); ++item)
            attend_one(*kernels, step, of, layer, window, sequence[size_t(item % step.tokens)], int(item), q.data(),
                       out.data(), scores[size_t(thread)].data());
    });
}

// GELU in place: float32, or bfloat16 as its 16 bits. Threads take equal parts.
template <class Number>
void gelu(Array<Number, 1> x, const std::string& instruction_set, int threads) {
    const Kernels* kernels = by_name(instruction_set);
    const nb::gil_scoped_release release;
    Team& team = team_of(threads);
    const int64_t size = int64_t(x.size());
    team.run([&](int thread) {
        const int64_t first = size * thread / team.size(), count = size * (thread + 1) / team.size() - first;
        if constexpr (std::is_same_v<Number, uint16_t>)
            kernels->gelu_bfloat16(x.data() + first, count);
        else
            for (int64_t i = 0; i < count; i += 1 << 20)
                kernels->activate(nullptr, x.data() + first + i, int(std::min<int64_t>(count - i, 1 << 20)));
    });
}

// Attention of a prompt's tokens: q and out (B, T, heads, size), k and v (B, keys, kv_heads, size), bfloat16 as its 16 bits.
void attend_long(Array<const uint16_t, 4> q, Array<const uint16_t, 4> k, Array<const uint16_t, 4> v, int64_t window,
                 Array<uint16_t, 4> out, const std::string& instruction_set, int threads) {
    const Kernels* kernels = by_name(instruction_set);
    const auto whole = [&](int64_t text) {
        return PromptHeads{q.data() + text * int64_t(q.size() / q.shape(0)), k.data() + text * int64_t(k.size() / k.shape(0)),
                           v.data() + text * int64_t(v.size() / v.shape(0)), out.data() + text * int64_t(q.size() / q.shape(0)),
                           int64_t(q.shape(1)), int64_t(k.shape(1)), int64_t(q.shape(2)), int64_t(k.shape(2)),
                           int64_t(q.shape(3)), window};
    };
    bool same = q.size() == out.size() && k.size() == v.size() && q.size() > 0 && k.size() > 0 && window >= 0;
    for (const size_t axis : {0, 1, 2, 3}) same = same && q.shape(axis) == out.shape(axis) && k.shape(axis) == v.shape(axis);
    if (!same || q.shape(0) != k.shape(0) || q.shape(3) != k.shape(3) || q.shape(1) > k.shape(1) || q.shape(2) % k.shape(2))
        throw std::invalid_argument("wanted q and out (B, T, heads, size), k and v (B, keys, kv_heads, size), keys >= T");
    if (!kernels->attend_prompt || !whole(0).fits())
        throw std::invalid_argument("wanted heads of 32, 64, 96 or 128 numbers, and instructions that multiply bfloat16");
    const nb::gil_scoped_release release;
    Team& team = team_of(threads);
    team.run([&](int thread) {
        static thread_local std::vector<uint16_t> kept;  // it only ever grows
        uint16_t* room = aligned(kept, whole(0).room());
        const int64_t heads = int64_t(k.shape(2)), items = int64_t(q.shape(0)) * heads;
        for (int64_t item = items * thread / team.size(); item < items * (thread + 1) / team.size(); ++item)
            kernels->attend_prompt(whole(item / heads), item % heads, room);
    });
}

}  // namespace

void bind_functions(nb::module_& module) {
    module.def("gelu", &gelu<float>, nb::arg("x"), nb::arg("instruction_set"), nb::arg("threads"));
    module.def("gelu", &gelu<uint16_t>, nb::arg("x"), nb::arg("instruction_set"), nb::arg("threads"));
    module.def("attend_long", &attend_long, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("window"), nb::arg("out"),
               nb::arg("instruction_set"), nb::arg("threads"));
    module.def("attend", &attend_step, nb::arg("q"), nb::arg("starts"), nb::arg("cached"), nb::arg("blocks"),
               nb::arg("keys"), nb::arg("values"), nb::arg("strides"), nb::arg("block_size"), nb::arg("kv_heads"),
               nb::arg("layer"), nb::arg("window"), nb::arg("out"), nb::arg("instruction_set"), nb::arg("threads"));
}

}  // namespace tinylm
