// What the files that meet Python share: the arrays that they take, instruction sets by name, and threads. Next: matrix.hpp.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "packed.hpp"
#include "team.hpp"

namespace nb = nanobind;

namespace tinylm {

template <class Number, size_t Dimensions>
using Array = nb::ndarray<Number, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
template <class Number>
using AnyArray = nb::ndarray<Number, nb::c_contig, nb::device::cpu>;

using Places = Array<const int64_t, 1>;
using Tables = Array<const int64_t, 2>;
using Memory = nb::ndarray<nb::c_contig, nb::device::cpu>;  // a cache's keys, or values: float, or bfloat16's 16 bits

// Fastest first, of those that were compiled and that this processor has.
std::vector<const Kernels*> at_hand();

// std::invalid_argument where it is not at hand.
const Kernels* by_name(const std::string& name);

// The calling thread's own team.
Team& team_of(int threads);

// Room for so many numbers at the beginning of a cache line, in memory that only ever grows.
inline uint16_t* aligned(std::vector<uint16_t>& kept, size_t numbers) {
    if (kept.size() < numbers + kAlign) kept.resize(numbers + kAlign);
    void* room = kept.data();
    size_t left = kept.size() * sizeof(uint16_t);
    return static_cast<uint16_t*>(std::align(kAlign, numbers * sizeof(uint16_t), room, left));
}

// Each adds its part to the module.
void bind_matrix(nb::module_& module);
void bind_model(nb::module_& module);
void bind_functions(nb::module_& module);

}  // namespace tinylm
