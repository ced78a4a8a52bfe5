// SPDX-License-Identifier: Apache-2.0
#include "program/registry.h"

#include <map>

namespace tops {
namespace {

struct Registration {
  size_t least, most;
  OpFactory factory;
};

// A function's own: registration lines of other files run before this file's variables exist.
std::map<std::string, Registration>& registry() {
  static std::map<std::string, Registration> operators;
  return operators;
}

}  // namespace

void register_op(const char* name, size_t least, size_t most, OpFactory factory) {
  registry()[name] = {least, most, factory};
}

std::unique_ptr<OpKernel> make_op(const Attributes& at, const Types& inputs) {
  const auto found = registry().find(at.op());
  if (found == registry().end()) {
    std::string names;
    for (const auto& [name, entry] : registry()) names += (names.empty() ? "" : ", ") + name;
    bad_node(at.op(), "one of the operators " + names, "'" + at.op() + "'");
  }
  const Registration& op = found->second;
  if (inputs.size() < op.least || inputs.size() > op.most)
    bad_node(at.op(),
             (op.least < op.most ? std::to_string(op.least) + " to " : "") +
                 std::to_string(op.most) + " inputs",
             std::to_string(inputs.size()));
  std::unique_ptr<OpKernel> made = op.factory(at, inputs);
  at.check_all_read();
  return made;
}

}  // namespace tops
