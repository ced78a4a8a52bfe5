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

}  // namespace tops
