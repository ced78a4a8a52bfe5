// SPDX-License-Identifier: Apache-2.0
// The operators of programs by name. The file of an operator registers it in one line:
//   const RegisterOp<MaxPool2d> kMaxPool2d("max_pool2d", 1);
#pragma once

#include <memory>
#include <string>

#include "program/op_kernel.h"

namespace tops {

using OpFactory = std::unique_ptr<OpKernel> (*)(const Attributes&, const Types& inputs);

// least, most: how many inputs it takes.
void register_op(const char* name, size_t least, size_t most, OpFactory factory);

template <class Op>
struct RegisterOp {
  RegisterOp(const char* name, size_t inputs) : RegisterOp(name, inputs, inputs) {}
  RegisterOp(const char* name, size_t least, size_t most) {
    register_op(name, least, most, [](const Attributes& at, const Types& inputs) {
      return std::unique_ptr<OpKernel>(std::make_unique<Op>(at, inputs));
    });
  }
};

// The operator that `at` names. Throws kUnsupportedModel where there is none, or where inputs or
// attributes do not suit it.
std::unique_ptr<OpKernel> make_op(const Attributes& at, const Types& inputs);

}  // namespace tops
