// SPDX-License-Identifier: Apache-2.0
// Nodes whose values are rows of numbers, not images.
#include <cstring>

#include "base/scalar_math.h"
#include "base/threads.h"
#include "isa/isa.h"
#include "ops/linear.h"
#include "program/program.h"

namespace tops {
namespace {

// Adds outputs [begin, end) of row i of the residual.
void add_residual(const ActivationTensor& g, const Operand& residual, const uint8_t* r, int64_t i,
                  int64_t begin, int64_t end, float* y) {
  for (int64_t o = begin; o < end; ++o) {
    float v;
    if (residual.is_float)
      std::memcpy(&v, r + (o * g.channel_stride + i) * 4, 4);
    else
      v = dequantized(r[((o / 4) * g.channel_stride + i) * 4 + o % 4], residual.scale,
                      residual.zero_point);
    y[o] = y[o] + v;
  }
}

void store_codes(const ActivationTensor& g, const Epilogue& e, const float* y, int64_t i,
                 int64_t begin, int64_t end, uint8_t* to) {
  for (int64_t o = begin; o < end; ++o)
    to[((o / 4) * g.channel_stride + i) * 4 + o % 4] = to_code(y[o], e);
}

}  // namespace

void MemoryPlan::run_linear(const NodeTask& w, const RunContext& f) const {
  const Node& node = w.node;
  const LayerWeights& l = *node.layer;
  const ActivationTensor& in = step(node.a).grid;
  const ActivationTensor& g = w.step.grid;
  uint8_t* const to = w.y;
  // One float row ends up as it is computed.
  const bool direct = g.is_float && g.channel_stride == 1;
  Buffer gathered(in.n > 1 ? in.n * in.packets * 4 : 0), floats(direct ? 0 : in.n * l.shape.o * 4);
  const uint8_t* x = data(f, node.a);
  if (in.n > 1) {  // a single row lies there already
    for (int64_t q = 0; q < in.packets; ++q)
      for (int64_t i = 0; i < in.n; ++i)
        std::memcpy(gathered.data() + (i * in.packets + q) * 4, x + (q * in.channel_stride + i) * 4,
                    4);
    x = gathered.data();
  }
  float* const y = reinterpret_cast<float*>(direct ? to : floats.data());
  const Operand residual = operand_of(nodes_, node.b);
  const Epilogue e = make_epilogue(node.requantize, residual);
  const auto finish = [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < in.n; ++i) {
      float* const row = y + i * l.shape.o;
      if (residual.present) {
        const NodePlan& r = step(node.b);
        add_residual(r.grid, residual, data(f, node.b), i, begin, end, row);
      }
      if (g.is_float)
        for (int64_t o = begin; o < end; ++o) row[o] = activate(row[o], e);
      else
        store_codes(g, e, row, i, begin, end, to);
    }
  };
  if (in.is_float) {
    gemv_float(l.weight_rows(), x, false, in.n, l.scale.data(), l.bias.data(), y);
    finish(0, l.shape.o);
  } else {
    const int32_t zero_point = nodes_[static_cast<size_t>(node.a)].zero_point;
    const GemvInput rows{x, false, in.n, in.packets * 4, 1.0f, zero_point};
    gemv(l.weight_rows(), rows, l.scale.data(), l.bias.data(), y, finish);
  }
  if (g.is_float) {
    if (!direct) tensor_from_nchw(g, w.rows, y, 0, to);
    return;
  }
  for (int64_t o = l.shape.o; o % 4; ++o)
    for (int64_t i = 0; i < g.n; ++i) to[((o / 4) * g.channel_stride + i) * 4 + o % 4] = 0;
}

void MemoryPlan::quantize_rows(const Node& node, const ActivationTensor& g, const float* x,
                               uint8_t* y) const {
  const KernelTable& kernel = kernels();
  const float inv = 1.0f / node.scale;
  parallel_for(g.n, g.n * g.packets / 4, [&](int64_t i, int) {
    Buffer line(g.n > 1 ? g.packets * 4 : 0);
    uint8_t* const row = g.n > 1 ? line.data() : y;
    std::memset(row + (g.packets - 1) * 4, node.zero_point, 4);
    kernel.quantize_row(x + i * g.channels, g.channels, inv, node.zero_point, row);
    if (g.n > 1)
      for (int64_t q = 0; q < g.packets; ++q)
        std::memcpy(y + (q * g.channel_stride + i) * 4, row + q * 4, 4);
  });
}

}  // namespace tops
