// SPDX-License-Identifier: Apache-2.0
// Operator input: the caller's array as packets.
#include <string>

#include "program/registry.h"

namespace tops {
namespace {

class Input : public RowwiseOp {
 public:
  Input(const Attributes& at, const Types&) {
    type_.channels = at.integer("c", 1);
    type_.rank = static_cast<int>(at.integer("rank", 2, 4));
    // The caller has held the shape to it; here it must only make sense.
    if (at.has("size") && at.integers("size", 1).size() != static_cast<size_t>(type_.rank - 2))
      bad_node("input", "a size for each axis behind the channels", "another number");
  }

  void run(const NodeRun& node) const override {
    const float* const x = node.callers_array();
    if (type_.rank == 3)
      tensor_from_nhwc(node.out(), x, node.y());
    else
      tensor_from_nchw(node.out(), node.rows, x, 0, node.y());
  }
};

const RegisterOp<Input> kInput("input", 0);

}  // namespace
}  // namespace tops
