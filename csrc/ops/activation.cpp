// SPDX-License-Identifier: Apache-2.0
// Functions of one number, and what normalizes over channels.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "isa/isa.h"
#include "program/program.h"
#include "tensor/for_each_row.h"

namespace tops {
namespace {

float softplus(float x) { return std::max(x, 0.0f) + std::log1p(std::exp(-std::fabs(x))); }

float hardsigmoid(float x) { return std::min(std::max(x + 3.0f, 0.0f), 6.0f) / 6.0f; }

float gelu_tanh(float x) {
  return 0.5f * x * (1.0f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
}

template <class F>
void map_row(const float* x, float* y, int64_t n, const F& f) {
  for (int64_t i = 0; i < n; ++i) y[i] = f(x[i]);
}

void map_floats(const KernelTable& kernel, const Detail& d, const float* x, float* y, int64_t n) {
  const float a = d.params.empty() ? 0.0f : d.params[0];
  const float b = d.params.size() < 2 ? 0.0f : d.params[1];
  switch (d.function) {
    case Function::kAffine:
      return map_row(x, y, n, [=](float v) { return v * a + b; });
    case Function::kLeakyRelu:
      return kernel.map_floats(FloatMap::kLeakyRelu, a, x, n, y);
    case Function::kHardswish:
      return map_row(x, y, n, [](float v) { return v * hardsigmoid(v); });
    case Function::kHardsigmoid:
      return map_row(x, y, n, hardsigmoid);
    case Function::kSilu:
      return kernel.map_floats(FloatMap::kSilu, a, x, n, y);
    case Function::kSigmoid:
      return kernel.map_floats(FloatMap::kSigmoid, a, x, n, y);
    case Function::kTanh:
      return map_row(x, y, n, [](float v) { return std::tanh(v); });
    case Function::kGelu:
      return map_row(x, y, n, [](float v) { return 0.5f * v * std::erfc(-v * 0.70710678f); });
    case Function::kGeluTanh:
      return map_row(x, y, n, gelu_tanh);
    case Function::kElu:
      return map_row(x, y, n, [=](float v) { return v > 0.0f ? v : a * std::expm1(v); });
    case Function::kSoftplus:
      return map_row(x, y, n, [=](float v) { return v * a > b ? v : softplus(v * a) / a; });
    case Function::kMish:
      return map_row(x, y, n, [](float v) { return v * std::tanh(softplus(v)); });
    case Function::kExp:
      return map_row(x, y, n, [](float v) { return std::exp(v); });
  }
}

}  // namespace

void MemoryPlan::run_activation(const NodeTask& w, const RunContext& f) const {
  const ActivationTensor &in = step(w.node.a).grid, &out = w.step.grid;
  const Detail& d = *w.node.detail;
  uint8_t* const from = data(f, w.node.a);
  const KernelTable& kernel = kernels();
  parallel_for(quads_of(out), 16 * vectors_of(out, w.rows), [&](int64_t quad, int) {
    for (int64_t n = 0; n < out.n; ++n)
      for (int64_t row = w.rows.begin; row < w.rows.end; ++row) {
        const Packets x = packets_at(in, from, quad, in.packet(n, row, 0));
        const Packets y = packets_at(out, w.y, quad, out.packet(n, row, 0));
        if (!out.is_float) {
          kernel.lookup(x.channel[0], out.w, d.codes.data(), y.channel[0]);
          continue;
        }
        for (int64_t j = 0; j < 4 && y.channel[j]; ++j) {
          float* const to = reinterpret_cast<float*>(y.channel[j]);
          if (in.is_float)
            map_floats(kernel, d, reinterpret_cast<const float*>(x.channel[j]), to, out.w);
          else
            for (int64_t p = 0; p < out.w; ++p) to[p] = d.table[x.channel[0][p * 4 + j]];
        }
      }
  });
  fill_all_halos(out, w.rows, w.y, halo_value(w.node));
}

void MemoryPlan::run_over_channels(const NodeTask& w, const RunContext& f) const {
  const Node& node = w.node;
  const ActivationTensor &in = step(node.a).grid, &out = w.step.grid;
  const int64_t count = out.channels, lines = w.rows.end - w.rows.begin;
  const uint8_t* const from = data(f, node.a);
  parallel_for(out.n * lines, 16 * vectors_of(out, w.rows), [&](int64_t line, int) {
    const int64_t image = line / lines, row = w.rows.begin + line % lines;
    const float* const x = reinterpret_cast<const float*>(from) + in.packet(image, row, 0);
    float* const y = reinterpret_cast<float*>(w.y) + out.packet(image, row, 0);
    for (int64_t p = 0; p < out.w; ++p) {
      if (node.op == Op::kSoftmax) {
        float most = x[p], sum = 0.0f;
        for (int64_t c = 1; c < count; ++c) most = std::max(most, x[c * in.channel_stride + p]);
        for (int64_t c = 0; c < count; ++c)
          sum += y[c * out.channel_stride + p] = std::exp(x[c * in.channel_stride + p] - most);
        for (int64_t c = 0; c < count; ++c) y[c * out.channel_stride + p] /= sum;
        continue;
      }
      const Detail& d = *node.detail;
      double mean = 0.0, square = 0.0;  // of many channels: float32 sums would lose digits
      for (int64_t c = 0; c < count; ++c) mean += static_cast<double>(x[c * in.channel_stride + p]);
      mean /= static_cast<double>(count);
      for (int64_t c = 0; c < count; ++c) {
        const double v = static_cast<double>(x[c * in.channel_stride + p]) - mean;
        square += v * v;
      }
      const double spread =
          std::sqrt(square / static_cast<double>(count) + static_cast<double>(d.eps));
      for (int64_t c = 0; c < count; ++c) {
        const double v = (static_cast<double>(x[c * in.channel_stride + p]) - mean) / spread;
        y[c * out.channel_stride + p] = static_cast<float>(v) * d.params[static_cast<size_t>(c)] +
                                        d.params[static_cast<size_t>(count + c)];
      }
    }
  });
  fill_all_halos(out, w.rows, w.y, 0);
}

}  // namespace tops
