// SPDX-License-Identifier: Apache-2.0
// What each node does when a plan runs.
#include <algorithm>
#include <cstring>

#include "base/scalar_math.h"
#include "base/threads.h"
#include "isa/isa.h"
#include "program/program.h"
#include "tensor/for_each_row.h"

namespace tops {
namespace {

const float kNoBias[4] = {0.0f, 0.0f, 0.0f, 0.0f};

}  // namespace

void MemoryPlan::run_task(const RowTask& task, const RunContext& f) const {
  const Node& node = nodes_[static_cast<size_t>(task.id)];
  const NodePlan& s = step(task.id);
  const NodeTask w{task.id, node, s, task.rows, data(f, task.id)};
  switch (node.op) {
    case Op::kInput:
      if (!s.external) tensor_from_nchw(s.grid, w.rows, f.x, 0, w.y);
      break;
    case Op::kQuantize:
      run_quantize(w, f);
      break;
    case Op::kDequantize:
      run_dequantize(w, f);
      break;
    case Op::kConv:
    case Op::kLinear:
      if (s.by_rows)
        run_linear(w, f);
      else
        run_conv(w, f);
      break;
    case Op::kMaxPool:
      run_max_pool(w, f);
      break;
    case Op::kAvgPool:
    case Op::kAdaptiveAvgPool:
      run_avg_pool(w, f);
      break;
    case Op::kAdd:
    case Op::kMul:
    case Op::kClamp:
      run_add(w, f);
      break;
    case Op::kFlatten:
      run_flatten(w, f);
      break;
    case Op::kActivation:
      run_activation(w, f);
      break;
    case Op::kConcat:
      run_concat(w, f);
      break;
    case Op::kSlice:
    case Op::kPixelShuffle:
    case Op::kPixelUnshuffle:
    case Op::kChannelShuffle:
      run_move(w, f);
      break;
    case Op::kResize:
      run_resize(w, f);
      break;
    case Op::kSoftmax:
    case Op::kLayerNorm:
      run_over_channels(w, f);
      break;
  }
}

void MemoryPlan::run_conv(const NodeTask& w, const RunContext& f) const {
  const Node& node = w.node;
  const ConvPlan& conv = *w.step.conv.at(conv_key(static_cast<size_t>(w.id), w.rows));
  const uint8_t* x = data(f, node.a);
  const uint8_t* residual = node.b < 0 ? nullptr : data(f, node.b);
  const uint8_t* gate = node.gate < 0 ? nullptr : data(f, node.gate);
  uint8_t* y = w.y;
  const ActivationTensor& out = w.step.grid;
  if (band_) {
    const ActivationTensor& in = step(node.a).grid;
    x += (rows_read(node, in, out, w.rows).begin + in.margin) * in.pitch * 4;
    y += (w.rows.begin + out.margin) * out.pitch * 4;
    if (residual) residual += (w.rows.begin + step(node.b).grid.margin) * out.pitch * 4;
    if (gate) gate += (w.rows.begin + step(node.gate).grid.margin) * out.pitch * 4;
  }
  conv.run(x, y, residual, f.arena + memories_[w.step.scratch].at, gate);
  if (band_) fill_margins(out, w.rows, w.y, halo_value(node));
}

void MemoryPlan::run_quantize(const NodeTask& w, const RunContext& f) const {
  const Node& node = w.node;
  const NodePlan& from = step(node.a);
  const ActivationTensor& g = w.step.grid;
  const KernelTable& kernel = kernels();
  const float inv = 1.0f / node.scale;
  const uint8_t* const x = from.external ? nullptr : data(f, node.a);
  if (from.external && g.h * g.w == 1 && g.packets && !g.halo && !node.fine)
    return quantize_rows(node, g, f.x, w.y);
  const int64_t channels = from.grid.channels;
  for_rows(g, w.rows, [&](int64_t quad, int64_t n, int64_t row) {
    uint8_t* const to = w.y + (quad * g.channel_stride + g.packet(n, row, 0)) * 4;
    if (node.fine && quad % 2) return;  // with the one before
    if (node.fine) quad /= 2;
    const float* in[4] = {nullptr, nullptr, nullptr, nullptr};
    for (int64_t j = 0; j < 4 && quad * 4 + j < channels; ++j) {
      const int64_t c = quad * 4 + j;
      in[j] = from.external
                  ? f.x + ((n * channels + c) * g.h + row) * g.w
                  : reinterpret_cast<const float*>(
                        x + (c * from.grid.channel_stride + from.grid.packet(n, row, 0)) * 4);
    }
    if (node.fine)
      kernel.quantize_fine(in, g.w, inv, node.zero_point, to, to + g.channel_stride * 4);
    else
      kernel.quantize(in, g.w, inv, node.zero_point, to);
  });
  fill_all_halos(g, w.rows, w.y, halo_value(node));
}

void MemoryPlan::run_dequantize(const NodeTask& w, const RunContext& f) const {
  const ActivationTensor &in = step(w.node.a).grid, &g = w.step.grid;
  const Node& source = nodes_[static_cast<size_t>(w.node.a)];
  const uint8_t* const x = data(f, w.node.a);
  const KernelTable& kernel = kernels();
  for_rows(g, w.rows, [&](int64_t quad, int64_t n, int64_t row) {
    const Packets out = packets_at(g, w.y, quad, g.packet(n, row, 0));
    float* y[4];
    for (int j = 0; j < 4; ++j) y[j] = reinterpret_cast<float*>(out.channel[j]);
    kernel.dequantize(x + (quad * in.channel_stride + in.packet(n, row, 0)) * 4, g.w, source.scale,
                      source.zero_point, y);
  });
  fill_all_halos(g, w.rows, w.y, 0);
}

void MemoryPlan::run_max_pool(const NodeTask& w, const RunContext& f) const {
  const Node& node = w.node;
  const ActivationTensor& in = step(node.a).grid;
  const ActivationTensor& out = w.step.grid;
  const Window& win = node.window;
  const Rows rows = w.rows;
  const float lowest = -__builtin_inff();
  uint32_t fill = 0;  // the smallest code; for float, minus infinity
  if (node.is_float) std::memcpy(&fill, &lowest, 4);
  const uint8_t* const x = data(f, node.a);
  const KernelTable& kernel = kernels();
  const int64_t pitch =
      std::max(win.pad_w + in.w, (out.w - 1) * win.stride_w + (node.kernel_w - 1) * win.dil_w + 1);
  const int64_t count_out = rows.end - rows.begin;
  const int64_t work = vectors_of(out, rows) * win.stride_h * win.stride_w;
  parallel_for(out.packets, work * (node.kernel_h + 1), [&](int64_t c, int) {
    std::vector<const uint8_t*> lines(static_cast<size_t>(node.kernel_h));
    Buffer columns(pitch * count_out * 4 + kSlackBytes * win.stride_w);
    fill_packets(columns.data(), fill, pitch * count_out);
    for (int64_t n = 0; n < out.n; ++n) {
      for (int64_t oy = rows.begin; oy < rows.end; ++oy) {
        size_t count = 0;
        for (int64_t i = 0; i < node.kernel_h; ++i) {
          const int64_t iy = oy * win.stride_h - win.pad_h + i * win.dil_h;
          if (iy >= 0 && iy < in.h)
            lines[count++] = x + (c * in.channel_stride + in.packet(n, iy, 0)) * 4;
        }
        uint8_t* const row = columns.data() + ((oy - rows.begin) * pitch + win.pad_w) * 4;
        if (count)
          kernel.max_rows(lines.data(), static_cast<int64_t>(count), in.w, node.is_float, row);
        else
          fill_packets(row, fill, in.w);
      }
      for (int64_t oy = rows.begin; oy < rows.end; ++oy)
        kernel.max_columns(columns.data() + (oy - rows.begin) * pitch * 4, node.kernel_w,
                           win.stride_w, win.dil_w, node.is_float,
                           w.y + (c * out.channel_stride + out.packet(n, oy, 0)) * 4, out.w);
    }
  });
  fill_all_halos(out, rows, w.y, halo_value(node));
}

namespace {

// One window of an average pool: input rows [y0, y1) x columns [x0, x1), divided by count.
struct PoolWindow {
  int64_t y0, y1, x0, x1, count;
};

PoolWindow window_at(const Node& node, const ActivationTensor& in, int64_t oy, int64_t ox) {
  if (node.op == Op::kAdaptiveAvgPool) {
    const int64_t y0 = oy * in.h / node.out_h, y1 = ((oy + 1) * in.h + node.out_h - 1) / node.out_h;
    const int64_t x0 = ox * in.w / node.out_w, x1 = ((ox + 1) * in.w + node.out_w - 1) / node.out_w;
    return {y0, y1, x0, x1, (y1 - y0) * (x1 - x0)};
  }
  const Window& w = node.window;
  const int64_t ys = oy * w.stride_h - w.pad_h, xs = ox * w.stride_w - w.pad_w;
  const int64_t ye = std::min(ys + node.kernel_h, in.h + w.pad_h),
                xe = std::min(xs + node.kernel_w, in.w + w.pad_w);
  PoolWindow p{std::max<int64_t>(ys, 0), std::min(ye, in.h), std::max<int64_t>(xs, 0),
               std::min(xe, in.w), 0};
  p.y1 = std::max(p.y0, p.y1);
  p.x1 = std::max(p.x0, p.x1);
  p.count = node.include_pad ? (ye - ys) * (xe - xs) : (p.y1 - p.y0) * (p.x1 - p.x0);
  if (node.divisor) p.count = node.divisor;
  return p;
}

// One pixel of four channels; row_at(iy): their packets at the first column of an input row.
template <class Row>
void average_pixel(const Node& node, const Node& source, const ActivationTensor& in,
                   const PoolWindow& win, const Epilogue& e, const Row& row_at, const Packets& to) {
  const int64_t pixels = (win.y1 - win.y0) * (win.x1 - win.x0);
  int64_t sum[4] = {0, 0, 0, 0};
  float fsum[4] = {0, 0, 0, 0};
  for (int64_t iy = win.y0; iy < win.y1; ++iy) {
    const Packets row = row_at(iy);
    for (int64_t ix = win.x0; ix < win.x1; ++ix)
      for (int j = 0; j < 4; ++j) {
        if (!in.is_float) {
          sum[j] += row.channel[0][ix * 4 + j];
        } else if (row.channel[j]) {
          float v;
          std::memcpy(&v, row.channel[j] + ix * 4, 4);
          fsum[j] += v;
        }
      }
  }
  const float scale = in.is_float ? 1.0f / static_cast<float>(win.count)
                                  : source.scale / static_cast<float>(win.count);
  for (int j = 0; j < 4; ++j) {
    const float acc =
        in.is_float ? fsum[j] : static_cast<float>(sum[j] - source.zero_point * pixels);
    const float v = acc * scale;
    if (!node.is_float) {
      to.channel[0][j] = to_code(v, e);
    } else if (to.channel[j]) {
      const float r = activate(v, e);
      std::memcpy(to.channel[j], &r, 4);
    }
  }
}

// Columns of the output whose windows lie inside the image from left to right.
Rows inner_columns(const Node& node, const ActivationTensor& in, const ActivationTensor& out) {
  const Window& w = node.window;
  const int64_t begin = std::min(out.w, divide_up(w.pad_w, w.stride_w));
  const int64_t last = in.w + w.pad_w - node.kernel_w;  // where such a window may begin
  const int64_t end = last < 0 ? 0 : std::min(out.w, last / w.stride_w + 1);
  return {begin, std::max(begin, end)};
}

// The same sums in the same order as pixel by pixel, for many pixels of a row at once.
void average_floats(const Node& node, const ActivationTensor& in, Rows columns,
                    const PoolWindow& win, const uint8_t* x, const Epilogue& e, float* y) {
  const int64_t step = node.window.stride_w, count = columns.end - columns.begin;
  std::fill(y, y + count, 0.0f);
  for (int64_t iy = win.y0; iy < win.y1; ++iy)
    for (int64_t k = 0; k < node.kernel_w; ++k) {
      const int64_t ix = columns.begin * step - node.window.pad_w + k;
      const float* const from = reinterpret_cast<const float*>(x) + (iy - win.y0) * in.pitch + ix;
      if (step == 1)
        for (int64_t i = 0; i < count; ++i) y[i] += from[i];
      else
        for (int64_t i = 0; i < count; ++i) y[i] += from[i * step];
    }
  const float scale = 1.0f / static_cast<float>(win.count);
  for (int64_t i = 0; i < count; ++i) y[i] = activate(y[i] * scale, e);
}

}  // namespace

void MemoryPlan::run_avg_pool(const NodeTask& w, const RunContext& f) const {
  const Node& node = w.node;
  const ActivationTensor& in = step(node.a).grid;
  const ActivationTensor& out = w.step.grid;
  const Node& source = nodes_[static_cast<size_t>(node.a)];
  const Epilogue e = make_epilogue(node.requantize, {});
  uint8_t* const x = data(f, node.a);
  uint8_t* const y = w.y;
  const bool rows_at_once = in.is_float && node.op == Op::kAvgPool;
  const Rows inner = rows_at_once ? inner_columns(node, in, out) : Rows{0, 0};
  const int64_t work = divide_up(in.h, out.h) * divide_up(in.w, out.w) * vectors_of(out, w.rows);
  parallel_for(quads_of(out), 16 * work, [&](int64_t quad, int) {
    for (int64_t n = 0; n < out.n; ++n)
      for (int64_t oy = w.rows.begin; oy < w.rows.end; ++oy) {
        for (int64_t ox = 0; ox < out.w; ++ox) {
          if (ox == inner.begin && inner.end > inner.begin) {
            const PoolWindow win = window_at(node, in, oy, ox);
            const Packets from = packets_at(in, x, quad, in.packet(n, win.y0, 0));
            const Packets to = packets_at(out, y, quad, out.packet(n, oy, ox));
            for (int j = 0; j < 4; ++j)
              if (to.channel[j])
                average_floats(node, in, inner, win, from.channel[j], e,
                               reinterpret_cast<float*>(to.channel[j]));
            ox = inner.end - 1;
            continue;
          }
          average_pixel(
              node, source, in, window_at(node, in, oy, ox), e,
              [&](int64_t iy) { return packets_at(in, x, quad, in.packet(n, iy, 0)); },
              packets_at(out, y, quad, out.packet(n, oy, ox)));
        }
      }
  });
  fill_all_halos(out, w.rows, y, halo_value(node));
}

void MemoryPlan::run_add(const NodeTask& w, const RunContext& f) const {
  const Node& node = w.node;
  const ActivationTensor& a = step(node.a).grid;
  const Node& from = nodes_[static_cast<size_t>(node.a)];
  const bool two = node.b >= 0;
  const ActivationTensor& b = two ? step(node.b).grid : a;
  const ActivationTensor& g = w.step.grid;
  const Node& other = nodes_[static_cast<size_t>(two ? node.b : node.a)];
  AddArgs args{};
  args.a_float = from.is_float;
  args.b_float = other.is_float;
  args.has_b = two;
  args.float_out = node.is_float;
  args.a_scale = from.scale;
  args.a_zero_point = from.zero_point;
  args.epilogue =
      make_epilogue(node.requantize, {two, other.is_float, other.scale, other.zero_point});
  args.epilogue.bias = kNoBias;
  args.multiply = node.op == Op::kMul;
  args.b_spread = two && b.h * b.w == 1 && g.h * g.w > 1;
  uint8_t *const first = data(f, node.a), *const second = two ? data(f, node.b) : nullptr;
  const KernelTable& kernel = kernels();
  for_rows(g, w.rows, [&](int64_t quad, int64_t n, int64_t y) {
    const int64_t b_packet = b.packet(n, args.b_spread ? 0 : y, 0);
    kernel.add(args, packets_at(a, first, quad, a.packet(n, y, 0)),
               two ? packets_at(b, second, quad, b_packet) : Packets{},
               packets_at(g, w.y, quad, g.packet(n, y, 0)), g.w);
  });
  fill_all_halos(g, w.rows, w.y, halo_value(node));
}

void MemoryPlan::run_flatten(const NodeTask& w, const RunContext& f) const {
  const ActivationTensor& in = step(w.node.a).grid;
  const ActivationTensor& out = w.step.grid;
  const int64_t image = in.h * in.w;
  const uint8_t* const x = data(f, w.node.a);
  uint8_t* const y = w.y;
  if (!in.is_float)  // the last quad may have channels that nothing below writes
    for (int64_t n = 0; n < out.n; ++n)
      std::memset(y + ((out.packets - 1) * out.channel_stride + n) * 4, 0, 4);
  for (int64_t c = 0; c < in.channels; ++c)
    for (int64_t n = 0; n < in.n; ++n)
      for (int64_t p = 0; p < image; ++p) {
        const int64_t k = c * image + p, packet = in.packet(n, p / in.w, p % in.w);
        if (in.is_float)
          std::memcpy(y + (k * out.channel_stride + n) * 4,
                      x + (c * in.channel_stride + packet) * 4, 4);
        else
          y[((k / 4) * out.channel_stride + n) * 4 + k % 4] =
              x[((c / 4) * in.channel_stride + packet) * 4 + c % 4];
      }
}

}  // namespace tops
