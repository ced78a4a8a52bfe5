// SPDX-License-Identifier: Apache-2.0
// Attributes of a node by name, as a caller gives them; reads are typed and raise
// kUnsupportedModel, naming operator and attribute, where one is missing or of another kind.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace tops {

// Throws kUnsupportedModel: "expected <expected> for <op>, got <got>; ...".
[[noreturn]] void bad_node(const std::string& op, const std::string& expected,
                           const std::string& got);

// An array of the caller's, valid during the call.
struct ArrayView {
  char type = 0;  // 'f' float32, 'b' int8, 'B' uint8, as in Python's struct module
  const void* data = nullptr;
  std::vector<int64_t> shape;
  int64_t size() const;
};

class Attributes {
 public:
  using Numbers = std::vector<std::optional<double>>;  // without a value: None
  using Lists = std::vector<Numbers>;
  using Value = std::variant<bool, int64_t, double, std::string, Numbers, Lists, ArrayView>;

  explicit Attributes(std::string op) : op_(std::move(op)) {}
  void set(const std::string& name, Value value) { values_[name] = std::move(value); }
  const std::string& op() const { return op_; }

  // An attribute that is None counts as absent.
  bool has(const std::string& name) const;
  bool flag(const std::string& name) const;
  int64_t integer(const std::string& name, int64_t least,
                  int64_t most = std::numeric_limits<int64_t>::max()) const;
  float number(const std::string& name) const;
  const std::string& text(const std::string& name) const;
  std::pair<int64_t, int64_t> pair(const std::string& name, int64_t least) const;
  std::vector<int64_t> integers(const std::string& name, size_t count, int64_t least) const;
  // Of any number.
  std::vector<int64_t> integers(const std::string& name, int64_t least) const;
  std::vector<std::vector<int64_t>> integer_lists(const std::string& name, int64_t least) const;
  std::pair<float, float> numbers(const std::string& name) const;
  // [lo, hi]; None: no bound.
  std::pair<float, float> bounds(const std::string& name) const;
  // A list of numbers or a float32 array.
  std::vector<float> floats(const std::string& name) const;
  const ArrayView& array(const std::string& name, char type) const;
  // Throws where an attribute was given that no read has asked for.
  void check_all_read() const;

 private:
  const Value& value(const std::string& name, const char* expected) const;
  template <class T>
  const T& typed(const std::string& name, const char* expected) const;
  const Numbers& list(const std::string& name, size_t count) const;
  std::vector<int64_t> whole(const std::string& name, const Numbers& list, int64_t least) const;
  [[noreturn]] void bad(const std::string& name, const std::string& expected,
                        const std::string& got) const;

  std::string op_;
  std::map<std::string, Value> values_;
  mutable std::set<std::string> read_;
};

}  // namespace tops
