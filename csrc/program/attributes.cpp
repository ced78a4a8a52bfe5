// SPDX-License-Identifier: Apache-2.0
#include "program/attributes.h"

#include <cmath>
#include <functional>
#include <numeric>

#include "base/error.h"

namespace tops {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
// Doubles below hold every integer.
constexpr double kExact = 9007199254740992.0;

std::string described(const Attributes::Value& v) {
  struct Describe {
    std::string operator()(bool b) const { return b ? "true" : "false"; }
    std::string operator()(int64_t i) const { return std::to_string(i); }
    std::string operator()(double d) const { return std::to_string(d); }
    std::string operator()(const std::string& s) const { return "'" + s + "'"; }
    std::string operator()(const Attributes::Numbers& n) const {
      return "a list of " + std::to_string(n.size());
    }
    std::string operator()(const Attributes::Lists& n) const {
      return std::to_string(n.size()) + " lists";
    }
    std::string operator()(const ArrayView& a) const {
      return "an array of " + std::to_string(a.size()) + " elements of type '" + a.type + "'";
    }
  };
  return std::visit(Describe{}, v);
}

}  // namespace

void bad_node(const std::string& op, const std::string& expected, const std::string& got) {
  fail(ErrorKind::kUnsupportedModel, expected + " for " + op, got,
       "Check the node's inputs and attributes.");
}

int64_t ArrayView::size() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>());
}

void Attributes::bad(const std::string& name, const std::string& expected,
                     const std::string& got) const {
  bad_node(op_, "attribute '" + name + "' to be " + expected, got);
}

bool Attributes::has(const std::string& name) const {
  read_.insert(name);
  return values_.count(name) > 0;
}

const Attributes::Value& Attributes::value(const std::string& name, const char* expected) const {
  if (!has(name)) bad(name, expected, "nothing");
  return values_.at(name);
}

template <class T>
const T& Attributes::typed(const std::string& name, const char* expected) const {
  const Value& v = value(name, expected);
  if (const T* found = std::get_if<T>(&v)) return *found;
  bad(name, expected, described(v));
}

bool Attributes::flag(const std::string& name) const { return typed<bool>(name, "true or false"); }

int64_t Attributes::integer(const std::string& name, int64_t least, int64_t most) const {
  const int64_t found = typed<int64_t>(name, "an integer");
  if (found < least || found > most)
    bad(name, "an integer in " + std::to_string(least) + ".." + std::to_string(most),
        std::to_string(found));
  return found;
}

float Attributes::number(const std::string& name) const {
  const Value& v = value(name, "a number");
  if (const int64_t* i = std::get_if<int64_t>(&v)) return static_cast<float>(*i);
  return static_cast<float>(typed<double>(name, "a number"));
}

const std::string& Attributes::text(const std::string& name) const {
  return typed<std::string>(name, "a string");
}

const Attributes::Numbers& Attributes::list(const std::string& name, size_t count) const {
  const Numbers& found = typed<Numbers>(name, "a list of numbers");
  if (found.size() != count)
    bad(name, "a list of " + std::to_string(count), "a list of " + std::to_string(found.size()));
  return found;
}

std::vector<int64_t> Attributes::whole(const std::string& name, const Numbers& list,
                                       int64_t least) const {
  std::vector<int64_t> found;
  for (const std::optional<double>& v : list) {
    if (!v || std::rint(*v) != *v || !(*v >= static_cast<double>(least) && *v < kExact))
      bad(name, "integers of at least " + std::to_string(least), v ? std::to_string(*v) : "None");
    found.push_back(static_cast<int64_t>(*v));
  }
  return found;
}

std::vector<int64_t> Attributes::integers(const std::string& name, size_t count,
                                          int64_t least) const {
  return whole(name, list(name, count), least);
}

std::vector<int64_t> Attributes::integers(const std::string& name, int64_t least) const {
  return whole(name, typed<Numbers>(name, "a list of integers"), least);
}

std::vector<std::vector<int64_t>> Attributes::integer_lists(const std::string& name,
                                                            int64_t least) const {
  std::vector<std::vector<int64_t>> found;
  for (const Numbers& list : typed<Lists>(name, "lists of integers"))
    found.push_back(whole(name, list, least));
  return found;
}

std::pair<int64_t, int64_t> Attributes::pair(const std::string& name, int64_t least) const {
  const std::vector<int64_t> two = integers(name, 2, least);
  return {two[0], two[1]};
}

std::pair<float, float> Attributes::numbers(const std::string& name) const {
  const Numbers& two = list(name, 2);
  if (!two[0] || !two[1]) bad(name, "two numbers", "None");
  return {static_cast<float>(*two[0]), static_cast<float>(*two[1])};
}

std::pair<float, float> Attributes::bounds(const std::string& name) const {
  const Numbers& two = list(name, 2);
  const float lo = two[0] ? static_cast<float>(*two[0]) : -kInf;
  const float hi = two[1] ? static_cast<float>(*two[1]) : kInf;
  if (!(lo <= hi)) bad(name, "lo <= hi", std::to_string(lo) + " and " + std::to_string(hi));
  return {lo, hi};
}

std::vector<float> Attributes::floats(const std::string& name) const {
  if (std::holds_alternative<ArrayView>(value(name, "numbers"))) {
    const ArrayView& a = array(name, 'f');
    const float* const from = static_cast<const float*>(a.data);
    return {from, from + a.size()};
  }
  std::vector<float> found;
  for (const std::optional<double>& v : typed<Numbers>(name, "numbers")) {
    if (!v) bad(name, "numbers", "None");
    found.push_back(static_cast<float>(*v));
  }
  return found;
}

const ArrayView& Attributes::array(const std::string& name, char type) const {
  const ArrayView& found = typed<ArrayView>(name, "an array");
  if (found.type != type)
    bad(name, std::string("a contiguous array of type '") + type + "'", described(found));
  return found;
}

void Attributes::check_all_read() const {
  for (const auto& [name, given] : values_)
    if (!read_.count(name))
      bad_node(op_, "only attributes that it has", "'" + name + "' = " + described(given));
}

}  // namespace tops
