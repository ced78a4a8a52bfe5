// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>

namespace tops {

// The C++ side of ternary_ops.errors: bind.cpp turns the kind into the Python class of that name.
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
