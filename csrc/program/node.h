// SPDX-License-Identifier: Apache-2.0
// Node of a program: its operator and the values that it reads. Node i makes value i.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "program/op_kernel.h"

namespace tops {

struct Node {
  std::string name;  // of the operator
  std::unique_ptr<const OpKernel> op;
  std::vector<int> inputs;  // earlier nodes
  const ValueType& type() const { return op->type(); }
};

}  // namespace tops
