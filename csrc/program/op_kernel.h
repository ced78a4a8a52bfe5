// SPDX-License-Identifier: Apache-2.0
// OpKernel, the base class of every operator of a program. An operator is one object of a derived
// class in one file of csrc/ops, which ends in a registration line (program/registry.h). Duties:
//   constructor  read the attributes by name, check the types of the inputs, set type_;
//   infer        the shape of the value from the shapes of the inputs;
//   run          make rows of the value.
// The other virtual functions have defaults: override those of row streaming to let images go
// through the operator a few rows at a time, and those of memory planning where it can save memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/epilogue.h"
#include "ops/winograd.h"
#include "program/attributes.h"
#include "tensor/tensor.h"

namespace tops {

class MemoryPlan;
struct RunContext;

// Type of a value, known before the size of the input is. Rank 4: images [N, C, H, W]; 2: rows
// [N, C].
struct ValueType {
  int64_t channels = 0;  // 0: depends on the size of the input
  int rank = 4;
  bool is_float = true;
  float scale = 1.0f;  // of u8
  int32_t zero_point = 0;
};
using Types = std::vector<ValueType>;

// Of a value in memory; h = w = 1 for rank 2.
struct Shape {
  int64_t n = 0, channels = 0, h = 1, w = 1;
};
using Shapes = std::vector<Shape>;

// pairs: parity of the rows at which pairs of output rows begin (ops/winograd.h). odd: rows of the
// value should preferably end at an odd one.
struct RowPairing {
  bool odd = false;
  Pairs pairs = Pairs::kNone;
};

// A node within the plan for one input size: its operands and its value in memory.
class PlannedNode {
 public:
  PlannedNode(const MemoryPlan& plan, int id) : plan_(plan), id_(id) {}
  size_t inputs() const;
  const ActivationTensor& in(size_t i) const;
  const ActivationTensor& out() const;
  const ValueType& in_type(size_t i) const;
  // Input i as an operand that an epilogue reads.
  Operand operand(size_t i) const;
  // Does the plan go through the image a few rows at a time?
  bool streaming() const;
  Pairs row_pairs() const;

 protected:
  const MemoryPlan& plan_;
  int id_;
};

// State that an operator prepares once for all runs of a plan.
struct Prepared {
  virtual ~Prepared() = default;
  virtual int64_t scratch_bytes() const = 0;
};

// A node in one run: rows of its value are to be made.
class NodeRun : public PlannedNode {
 public:
  NodeRun(const MemoryPlan& plan, const RunContext& context, int id, Rows rows_to_make);
  // First packet of input i and of the value, where all rows would lie if all were in memory. x(0)
  // is null where the input stays in the caller's array.
  uint8_t* x(size_t i) const;
  uint8_t* y() const { return y_; }
  const float* callers_array() const;
  // Does input i lie in the value's memory, at its place?
  bool in_its_place(size_t i) const;
  const Prepared* prepared() const;
  uint8_t* scratch() const;

  const Rows rows;

 private:
  const RunContext& context_;
  uint8_t* y_;
};

class OpKernel {
 public:
  virtual ~OpKernel() = default;
  const ValueType& type() const { return type_; }

  // Default: the shape of the first input, and all inputs are of one size. Throws
  // kUnsupportedShape.
  virtual Shape infer(const Shapes& inputs) const;
  virtual void run(const NodeRun& node) const = 0;

  // --- Row streaming ---
  // Can rows be made from a few rows of the inputs? Default: no, it needs whole images.
  virtual bool streams(const Shapes& inputs) const;
  // Rows of input i that rows of the value are made from, image borders ignored. Default: the same
  // rows.
  virtual Rows rows_read(size_t i, Rows rows, int64_t in_height, int64_t out_height) const;
  // End of the rows of input i that the first `end` rows read, or a little more: a linear upper
  // bound of rows_read.
  virtual double smooth_end(size_t i, double end, int64_t in_height, int64_t out_height) const;
  // false: of input i only the size matters.
  virtual bool reads(size_t i) const;
  // Padding rows above and below its input that are to lie in memory.
  virtual int64_t margin() const { return 0; }
  virtual RowPairing row_pairing(bool odd_input) const;

  // --- Memory planning ---
  // May the value replace its first input? Every packet depends on the same packet of it.
  virtual bool in_place() const { return false; }
  // Do the inputs lie in the value, one behind the other along the channels?
  virtual bool concatenates() const { return false; }
  // Can it read the array of the program's caller, where its input is the program's?
  virtual bool reads_callers_array() const { return false; }
  // Padding around its input, rows and columns, that spares it a copy.
  virtual int64_t halo() const { return 0; }
  // Offset tables and the like for strips of as many rows as `rows`; null: it needs none.
  virtual std::unique_ptr<Prepared> prepare(const PlannedNode& node, Rows rows) const;

  // --- Reports ---
  virtual int64_t macs(const Shape& out) const;
  virtual double density() const { return 1.0; }
  // Quads of weights that are read once for all images of a batch.
  virtual int64_t shared_quads() const { return 0; }

 protected:
  ValueType type_;
};

// Makes each row of the value from the same row of every input.
class RowwiseOp : public OpKernel {
 public:
  bool streams(const Shapes& inputs) const override;
  RowPairing row_pairing(bool odd_input) const override { return {odd_input, Pairs::kNone}; }
};

inline uint32_t halo_value(const ValueType& t) { return t.is_float ? 0u : u8_packet(t.zero_point); }

// For constructors. Attribute y: [scale, zero point] of codes.
Requantize quantization_of(const Attributes& at);
// The same of an operator over x that makes floats where y is None; of floats it makes nothing
// else.
Requantize output_of(const Attributes& at, const ValueType& x);
// And attribute clamp, [lo, hi], either None for no bound.
Requantize clamped_output_of(const Attributes& at, const ValueType& x);
// t with the output's kind, scale and zero point.
ValueType with_output(ValueType t, const Requantize& q);
void need_image(const Attributes& at, const ValueType& x);

// For infer: throws kUnsupportedShape.
[[noreturn]] void bad_size(const std::string& expected, const std::string& got,
                           const std::string& to_do);
void need_same_size(const Shape& wanted, const Shape& got);

}  // namespace tops
