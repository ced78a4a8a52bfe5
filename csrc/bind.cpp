// SPDX-License-Identifier: Apache-2.0
// The only file that knows Python. Every function takes addresses and sizes or NumPy arrays, never a torch type.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "isa/error.h"

namespace py = pybind11;

namespace {

const char* error_name(tops::ErrorKind kind) {
  switch (kind) {
    case tops::ErrorKind::kUnsupportedShape: return "UnsupportedShape";
    case tops::ErrorKind::kUnsupportedDevice: return "UnsupportedDevice";
    case tops::ErrorKind::kUnsupportedModel: return "UnsupportedModel";
    case tops::ErrorKind::kBadWeights: return "BadWeights";
    case tops::ErrorKind::kFormatError: return "FormatError";
  }
  return "TernaryOpsError";
}

void translate(std::exception_ptr p) {
  try {
    if (p) std::rethrow_exception(p);
  } catch (const tops::Error& e) {
    py::object type = py::module_::import("ternary_ops.errors").attr(error_name(e.kind));
    PyErr_SetString(type.ptr(), e.what());
  }
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.attr("version") = TOPS_VERSION;
  py::register_exception_translator(&translate);
}
