// SPDX-License-Identifier: Apache-2.0
#include "program/program.h"

#include <string>

#include "program/registry.h"

namespace tops {
namespace {

constexpr size_t kPlans = 8;

}  // namespace

int Program::add(const Attributes& at, const std::vector<int>& inputs) {
  if ((at.op() == "input") != nodes_.empty())
    bad_node(at.op(), "the input as the first node and nowhere else",
             "node " + std::to_string(nodes_.size()));
  Types types;
  for (const int id : inputs) {
    if (id < 0 || static_cast<size_t>(id) >= nodes_.size())
      bad_node(at.op(), "inputs from earlier nodes", std::to_string(id));
    types.push_back(nodes_[static_cast<size_t>(id)].type());
  }
  nodes_.push_back({at.op(), make_op(at, types), inputs});
  return static_cast<int>(nodes_.size()) - 1;
}

void Program::output(int id) {
  if (id < 0 || static_cast<size_t>(id) >= nodes_.size())
    bad_node("output", "a node", std::to_string(id));
  if (!nodes_[static_cast<size_t>(id)].type().is_float)
    bad_node("output", "floats, made by dequantize", "u8");
  output_ = id;
}

std::shared_ptr<const MemoryPlan> Program::plan(int64_t n, int64_t h, int64_t w, bool keep_all) {
  if (output_ < 0) bad_node("output", "a node", "none");
  const Key key{n, h, w, keep_all};
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto it = plans_.begin(); it != plans_.end(); ++it)
    if (it->first == key) {
      plans_.splice(plans_.begin(), plans_, it);
      return it->second;
    }
  auto made =
      std::make_shared<const MemoryPlan>(nodes_, output_, Shape{n, 0, h, w}, keep_all, debug_);
  plans_.emplace_front(key, made);
  if (plans_.size() > kPlans) plans_.pop_back();
  return made;
}

void Program::debug(const PlanDebug& options) {
  std::lock_guard<std::mutex> lock(mutex_);
  debug_ = options;
  plans_.clear();
}

}  // namespace tops
