// SPDX-License-Identifier: Apache-2.0
// The one exception of the core: the C++ side of ternary_ops.errors. csrc/bind turns its kind into
// the Python class of that name.
#pragma once

#include <stdexcept>
#include <string>

namespace tops {

enum class ErrorKind {
  kUnsupportedShape,
  kUnsupportedDevice,
  kUnsupportedModel,
  kBadWeights,
  kFormatError
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind(kind) {}
  ErrorKind kind;
};

// Throws "expected `what`, got `got`;\n  `todo`", as ternary_ops.errors.need words it.
[[noreturn]] void fail(ErrorKind kind, const std::string& what, const std::string& got,
                       const std::string& todo);

}  // namespace tops
