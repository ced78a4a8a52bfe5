// SPDX-License-Identifier: Apache-2.0
#include "program/op_kernel.h"

#include <limits>

#include "base/error.h"

namespace tops {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::string size_of(const Shape& s) { return std::to_string(s.h) + "x" + std::to_string(s.w); }

}  // namespace

Shape OpKernel::infer(const Shapes& inputs) const {
  Shape made = inputs[0];
  if (type_.channels) made.channels = type_.channels;
  for (const Shape& other : inputs) need_same_size(made, other);
  return made;
}

bool OpKernel::streams(const Shapes&) const { return false; }

Rows OpKernel::rows_read(size_t, Rows rows, int64_t, int64_t) const { return rows; }

double OpKernel::smooth_end(size_t i, double end, int64_t in_height, int64_t out_height) const {
  const Rows first = rows_read(i, {0, 1}, in_height, out_height);
  const Rows second = rows_read(i, {1, 2}, in_height, out_height);
  return static_cast<double>(first.end) + (end - 1) * static_cast<double>(second.end - first.end);
}

bool OpKernel::reads(size_t) const { return true; }

RowPairing OpKernel::row_pairing(bool) const { return {}; }

std::unique_ptr<Prepared> OpKernel::prepare(const PlannedNode&, Rows) const { return nullptr; }

int64_t OpKernel::macs(const Shape&) const { return 0; }

bool RowwiseOp::streams(const Shapes&) const { return true; }

Requantize quantization_of(const Attributes& at) {
  const auto [scale, zero_point] = at.numbers("y");
  // The bounds keep 1 / scale and every product finite.
  if (!(scale >= 1e-30f && scale <= 1e30f && zero_point >= 0.0f && zero_point <= 255.0f))
    bad_node(at.op(), "a scale in 1e-30..1e30 and a zero point in 0..255",
             std::to_string(scale) + " and " + std::to_string(zero_point));
  return {-kInf, kInf, scale, static_cast<int32_t>(zero_point)};
}

Requantize output_of(const Attributes& at, const ValueType& x) {
  if (!at.has("y")) return {-kInf, kInf, 0.0f, 0};
  if (x.is_float) bad_node(at.op(), "u8 input for u8 output", "floats");
  return quantization_of(at);
}

Requantize clamped_output_of(const Attributes& at, const ValueType& x) {
  Requantize q = output_of(at, x);
  if (at.has("clamp")) std::tie(q.lo, q.hi) = at.bounds("clamp");
  return q;
}

ValueType with_output(ValueType t, const Requantize& q) {
  t.is_float = q.y_scale == 0.0f;
  t.scale = t.is_float ? 1.0f : q.y_scale;
  t.zero_point = q.y_zero_point;
  return t;
}

void need_image(const Attributes& at, const ValueType& x) {
  if (x.rank != 4) bad_node(at.op(), "an image [N, C, H, W]", "rank " + std::to_string(x.rank));
}

void bad_size(const std::string& expected, const std::string& got, const std::string& to_do) {
  fail(ErrorKind::kUnsupportedShape, expected, got, to_do);
}

void need_same_size(const Shape& wanted, const Shape& got) {
  if (got.h != wanted.h || got.w != wanted.w)
    bad_size("inputs of size " + size_of(wanted), size_of(got), "Use the image size of compile.");
}

}  // namespace tops
