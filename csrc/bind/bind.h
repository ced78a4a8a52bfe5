// SPDX-License-Identifier: Apache-2.0
// csrc/bind is the only folder that knows Python. Every function takes addresses and sizes or NumPy
// arrays, never a torch type.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>

#include "base/error.h"
#include "kernels/table.h"

namespace tops::bind {

namespace py = pybind11;

using Address = uintptr_t;
using Pair = std::pair<int64_t, int64_t>;
template <class T>
using Array = py::array_t<T, py::array::c_style>;

[[noreturn]] inline void bad_argument(const std::string& what) {
  throw Error(ErrorKind::kUnsupportedShape, what);
}

Weights weights_of(const std::string& name);

void bind_codec(py::module_& m);
void bind_engine(py::module_& m);
void bind_precision(py::module_& m);

}  // namespace tops::bind
