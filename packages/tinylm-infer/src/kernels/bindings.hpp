// What the files that meet Python share: the arrays that they take, instruction sets by name, and threads. Next: matrix.hpp.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
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

// Each adds its part to the module.
void bind_matrix(nb::module_& module);
void bind_model(nb::module_& module);
void bind_functions(nb::module_& module);

}  // namespace tinylm
