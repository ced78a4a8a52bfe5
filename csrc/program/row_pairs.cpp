// SPDX-License-Identifier: Apache-2.0
#include "program/row_pairs.h"

namespace tops {
namespace {

// Whether row y of the output is made of row y of the input.
bool keeps_rows(Op op) {
  return op == Op::kQuantize || op == Op::kDequantize || op == Op::kAdd || op == Op::kMul ||
         op == Op::kClamp || op == Op::kActivation || op == Op::kConcat || op == Op::kSlice;
}

}  // namespace

std::vector<Pairs> row_pairs(const std::vector<Node>& nodes) {
  std::vector<Pairs> pairs(nodes.size(), Pairs::kNone);
  std::vector<bool> odd(nodes.size(), false);  // where a value's rows had better end
  for (size_t id = 0; id < nodes.size(); ++id) {
    const Node& node = nodes[id];
    const Window& w = node.window;
    if (node.op == Op::kConv && w.stride_h == 1) {
      const int64_t below = w.dil_h * (node.layer->shape.r - 1) - w.pad_h;
      odd[id] = odd[static_cast<size_t>(node.a)] != (below % 2 != 0);
      if (by_row_pairs(node.layer->view(), w)) pairs[id] = odd[id] ? Pairs::kOdd : Pairs::kEven;
    } else if (keeps_rows(node.op)) {
      odd[id] = odd[static_cast<size_t>(node.a)];
    }
  }
  return pairs;
}

}  // namespace tops
