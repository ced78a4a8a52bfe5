// SPDX-License-Identifier: Apache-2.0
// Operators quantize (floats to u8) and dequantize (back).
#include <cstring>
#include <string>

#include "isa/isa.h"
#include "program/registry.h"
#include "tensor/for_each_row.h"

namespace tops {
namespace {

class Quantize : public RowwiseOp {
 public:
  Quantize(const Attributes& at, const Types& in) : fine_(at.flag("fine")) {
    if (!in[0].is_float) bad_node(at.op(), "floats", "u8");
    if (fine_) need_image(at, in[0]);
    type_ = with_output(in[0], quantization_of(at));
    if (fine_) type_.channels = divide_up(in[0].channels, 4) * 8;
  }

  bool reads_callers_array() const override { return true; }

  void run(const NodeRun& node) const override {
    const ActivationTensor& g = node.out();
    const bool rows = node.in_type(0).rank == 3 || g.h * g.w == 1;
    if (!node.x(0) && rows && g.packets && !g.halo && !fine_)
      run_rows(g, node.callers_array(), node.y());
    else
      run_channels(node);
  }

 private:
  void run_channels(const NodeRun& node) const;
  void run_rows(const ActivationTensor& g, const float* x, uint8_t* y) const;

  // Two-term 11-bit quantization: the rounding residual, in steps an eighth as large, follows each
  // four channels as four more; the convolution's filters are arranged to match.
  bool fine_;
};

void Quantize::run_channels(const NodeRun& node) const {
  const ActivationTensor &from = node.in(0), &g = node.out();
  const KernelTable& kernel = kernels();
  const float inv = 1.0f / type_.scale;
  const int32_t zero_point = type_.zero_point;
  const uint8_t* const x = node.x(0);
  const float* const array = x ? nullptr : node.callers_array();
  uint8_t* const y = node.y();
  const int64_t channels = from.channels;
  const bool fine = fine_;
  for_rows(g, node.rows, [&](int64_t quad, int64_t n, int64_t row) {
    uint8_t* const to = y + (quad * g.channel_stride + g.packet(n, row, 0)) * 4;
    if (fine && quad % 2) return;  // with the one before
    if (fine) quad /= 2;
    const float* in[4] = {nullptr, nullptr, nullptr, nullptr};
    for (int64_t j = 0; j < 4 && quad * 4 + j < channels; ++j) {
      const int64_t c = quad * 4 + j;
      in[j] = array ? array + ((n * channels + c) * g.h + row) * g.w
                    : reinterpret_cast<const float*>(
                          x + (c * from.channel_stride + from.packet(n, row, 0)) * 4);
    }
    if (fine)
      kernel.quantize_fine(in, g.w, inv, zero_point, to, to + g.channel_stride * 4);
    else
      kernel.quantize(in, g.w, inv, zero_point, to);
  });
  fill_all_halos(g, node.rows, y, halo_value(type_));
}

// The caller's rows of one number a channel.
void Quantize::run_rows(const ActivationTensor& g, const float* x, uint8_t* y) const {
  const KernelTable& kernel = kernels();
  const float inv = 1.0f / type_.scale;
  const int64_t count = g.n * g.h * g.w;
  parallel_for(count, count * g.packets / 4, [&](int64_t i, int) {
    Buffer line(count > 1 ? g.packets * 4 : 0);
    uint8_t* const row = count > 1 ? line.data() : y;
    std::memset(row + (g.packets - 1) * 4, type_.zero_point, 4);
    kernel.quantize_row(x + i * g.channels, g.channels, inv, type_.zero_point, row);
    if (count > 1)
      for (int64_t q = 0; q < g.packets; ++q)
        std::memcpy(y + (q * g.channel_stride + i) * 4, row + q * 4, 4);
  });
}

class Dequantize : public RowwiseOp {
 public:
  Dequantize(const Attributes& at, const Types& in) {
    if (in[0].is_float) bad_node(at.op(), "u8", "floats");
    type_ = with_output(in[0], {});
  }

  void run(const NodeRun& node) const override {
    const ActivationTensor &in = node.in(0), &g = node.out();
    const ValueType& source = node.in_type(0);
    const uint8_t* const x = node.x(0);
    const KernelTable& kernel = kernels();
    for_rows(g, node.rows, [&](int64_t quad, int64_t n, int64_t row) {
      const Packets out = packets_at(g, node.y(), quad, g.packet(n, row, 0));
      float* y[4];
      for (int j = 0; j < 4; ++j) y[j] = reinterpret_cast<float*>(out.channel[j]);
      kernel.dequantize(x + (quad * in.channel_stride + in.packet(n, row, 0)) * 4, g.w,
                        source.scale, source.zero_point, y);
    });
    fill_all_halos(g, node.rows, node.y(), 0);
  }
};

const RegisterOp<Quantize> kQuantize("quantize", 1);
const RegisterOp<Dequantize> kDequantize("dequantize", 1);

}  // namespace
}  // namespace tops
