// The compiled module tinylm.inference._kernels: the border to Python, and which instruction sets are at hand. What it
// offers is said in tinylm/inference/kernels/, the only Python code that imports it. Next: bindings.hpp.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "bindings.hpp"
#include "cpu.hpp"

namespace tinylm {

Ahead ahead_alone;

std::vector<const Kernels*> at_hand() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    static const Cpu cpu;
    if (cpu.amd) ahead_alone = {1024, 8192};
    if (kAvx512 && cpu.avx512) {
        static const Kernels* const tiles = cpu.avx512_bf16 ? amx() : nullptr;
        static const Kernels* const pairs = cpu.avx512_bf16 ? avx512_bf16() : nullptr;
        if (tiles) found.push_back(tiles);
        if (pairs) found.push_back(pairs);
        found.push_back(kAvx512);
    }
    if (kAvx2 && cpu.avx2) found.push_back(kAvx2);
#endif
    found.push_back(&kPortable);
    return found;
}

const Kernels* by_name(const std::string& name) {
    std::string names;
    for (const Kernels* kernels : at_hand()) {
        if (name == kernels->name) return kernels;
        names += (names.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw std::invalid_argument("wanted one of the instruction sets " + names + ", got " + name);
}

Team& team_of(int threads) {
    static thread_local std::unique_ptr<Team> kept;
    if (!kept || kept->size() != std::max(threads, 1)) kept = std::make_unique<Team>(threads);
    return *kept;
}

namespace {

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernels* kernels : at_hand()) names.emplace_back(kernels->name);
    return names;
}

}  // namespace
}  // namespace tinylm

NB_MODULE(_kernels, module) {
    module.doc() = "Compiled kernels; use tinylm.inference.kernels.";
    module.def("instruction_sets", &tinylm::instruction_sets);
    tinylm::bind_matrix(module);
    tinylm::bind_functions(module);
    tinylm::bind_model(module);
}
