// SPDX-License-Identifier: Apache-2.0
// What each node does when a plan runs.
#include <algorithm>
#include <cstring>

#include "engine/engine.h"
#include "engine/rows.h"
#include "engine/scalar_math.h"
#include "engine/threads.h"
#include "isa/isa.h"

namespace tops {
namespace {

const float kNoBias[4] = {0.0f, 0.0f, 0.0f, 0.0f};

}  // namespace

void Plan::run_node(size_t id, const float* x, uint8_t* arena) const {
  const Node& node = nodes_[id];
  const Step& s = steps_[id];
  switch (node.op) {
    case Op::kInput:
      if (!s.external) grid_from_nchw(s.grid, x, 0, arena + s.at);
      break;
    case Op::kQuantize:
      run_quantize(node, s, x, arena);
      break;
    case Op::kDequantize:
      run_dequantize(node, s, arena);
      break;
    case Op::kConv:
    case Op::kLinear:
      if (s.by_rows)
        run_linear(node, s, arena);
      else
        s.conv->run(arena + step(node.a).at, arena + s.at,
                    node.b < 0 ? nullptr : arena + step(node.b).at, arena + s.scratch_at);
      break;
    case Op::kMaxPool:
      run_max_pool(node, s, arena);
      break;
    case Op::kAvgPool:
    case Op::kAdaptiveAvgPool:
      run_avg_pool(node, s, arena);
      break;
    case Op::kAdd:
    case Op::kMul:
    case Op::kClamp:
      run_add(node, s, arena);
      break;
    case Op::kFlatten:
      run_flatten(node, s, arena);
      break;
    case Op::kActivation:
      run_activation(node, s, arena);
      break;
    case Op::kConcat:
      run_concat(node, s, arena);
      break;
    case Op::kSlice:
    case Op::kPixelShuffle:
    case Op::kPixelUnshuffle:
    case Op::kChannelShuffle:
      run_move(node, s, arena);
      break;
    case Op::kResize:
      run_resize(node, s, arena);
      break;
    case Op::kSoftmax:
    case Op::kLayerNorm:
      run_over_channels(node, s, arena);
      break;
  }
}

void Plan::run_quantize(const Node& node, const Step& s, const float* x, uint8_t* arena) const {
  const Step& from = step(node.a);
  const Grid& g = s.grid;
  const KernelTable& kernel = kernels();
  const float inv = 1.0f / node.scale;
  uint8_t* const y = arena + s.at;
  if (from.external && g.h * g.w == 1 && g.cells && !g.halo) return quantize_rows(node, g, x, y);
  for_rows(g, [&](int64_t quad, int64_t n, int64_t row) {
    const float* in[4] = {nullptr, nullptr, nullptr, nullptr};
    for (int64_t j = 0; j < 4 && quad * 4 + j < g.channels; ++j) {
      const int64_t c = quad * 4 + j;
      in[j] = from.external
                  ? x + ((n * g.channels + c) * g.h + row) * g.w
                  : reinterpret_cast<const float*>(
                        arena + from.at + (c * from.grid.plane + from.grid.cell(n, row, 0)) * 4);
    }
    kernel.quantize(in, g.w, inv, node.zero_point, y + (quad * g.plane + g.cell(n, row, 0)) * 4);
  });
  fill_all_halos(g, y, halo_value(node));
}

void Plan::run_dequantize(const Node& node, const Step& s, uint8_t* arena) const {
  const Step& from = step(node.a);
  const Node& source = nodes_[static_cast<size_t>(node.a)];
  const KernelTable& kernel = kernels();
  for_rows(s.grid, [&](int64_t quad, int64_t n, int64_t row) {
    const Cells out = cells_at(s.grid, arena + s.at, quad, s.grid.cell(n, row, 0));
    float* y[4];
    for (int j = 0; j < 4; ++j) y[j] = reinterpret_cast<float*>(out.channel[j]);
    kernel.dequantize(arena + from.at + (quad * from.grid.plane + from.grid.cell(n, row, 0)) * 4,
                      s.grid.w, source.scale, source.zero_point, y);
  });
  fill_all_halos(s.grid, arena + s.at, 0);
}

void Plan::run_max_pool(const Node& node, const Step& s, uint8_t* arena) const {
  const Grid& in = step(node.a).grid;
  const Grid& out = s.grid;
  const Window& w = node.window;
  const float lowest = -__builtin_inff();
  uint32_t fill = 0;  // the smallest code; for float, minus infinity
  if (node.is_float) std::memcpy(&fill, &lowest, 4);
  const uint8_t* const x = arena + step(node.a).at;
  uint8_t* const y = arena + s.at;
  const KernelTable& kernel = kernels();
  const int64_t pitch =
      std::max(w.pad_w + in.w, (out.w - 1) * w.stride_w + (node.kernel_w - 1) * w.dil_w + 1);
  parallel_for(out.cells, vectors_of(in) * (node.kernel_h + 1), [&](int64_t c, int) {
    std::vector<const uint8_t*> rows(static_cast<size_t>(node.kernel_h));
    Buffer columns(pitch * out.h * 4 + kSlackBytes * w.stride_w);
    fill_cells(columns.data(), fill, pitch * out.h);
    for (int64_t n = 0; n < out.n; ++n) {
      for (int64_t oy = 0; oy < out.h; ++oy) {
        size_t count = 0;
        for (int64_t i = 0; i < node.kernel_h; ++i) {
          const int64_t iy = oy * w.stride_h - w.pad_h + i * w.dil_h;
          if (iy >= 0 && iy < in.h) rows[count++] = x + (c * in.plane + in.cell(n, iy, 0)) * 4;
        }
        uint8_t* const row = columns.data() + (oy * pitch + w.pad_w) * 4;
        if (count)
          kernel.max_rows(rows.data(), static_cast<int64_t>(count), in.w, node.is_float, row);
        else
          fill_cells(row, fill, in.w);
      }
      for (int64_t oy = 0; oy < out.h; ++oy)
        kernel.max_columns(columns.data() + oy * pitch * 4, node.kernel_w, w.stride_w, w.dil_w,
                           node.is_float, y + (c * out.plane + out.cell(n, oy, 0)) * 4, out.w);
    }
  });
  fill_all_halos(out, y, halo_value(node));
}

namespace {

// One window of an average pool: input rows [y0, y1) x columns [x0, x1), divided by count.
struct PoolWindow {
  int64_t y0, y1, x0, x1, count;
};

PoolWindow window_at(const Node& node, const Grid& in, int64_t oy, int64_t ox) {
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

}  // namespace

void Plan::run_avg_pool(const Node& node, const Step& s, uint8_t* arena) const {
  const Grid& in = step(node.a).grid;
  const Grid& out = s.grid;
  const Node& source = nodes_[static_cast<size_t>(node.a)];
  const Epilogue e = make_epilogue(node.requantize, {});
  uint8_t* const x = arena + step(node.a).at;
  uint8_t* const y = arena + s.at;
  parallel_for(quads_of(out), 16 * vectors_of(in), [&](int64_t quad, int) {
    for (int64_t n = 0; n < out.n; ++n)
      for (int64_t oy = 0; oy < out.h; ++oy)
        for (int64_t ox = 0; ox < out.w; ++ox) {
          const PoolWindow w = window_at(node, in, oy, ox);
          const int64_t pixels = (w.y1 - w.y0) * (w.x1 - w.x0);
          const Cells to = cells_at(out, y, quad, out.cell(n, oy, ox));
          int64_t sum[4] = {0, 0, 0, 0};
          float fsum[4] = {0, 0, 0, 0};
          for (int64_t iy = w.y0; iy < w.y1; ++iy) {
            const Cells row = cells_at(in, x, quad, in.cell(n, iy, 0));
            for (int64_t ix = w.x0; ix < w.x1; ++ix)
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
          const float scale = in.is_float ? 1.0f / static_cast<float>(w.count)
                                          : source.scale / static_cast<float>(w.count);
          for (int j = 0; j < 4; ++j) {
            const float acc =
                in.is_float ? fsum[j] : static_cast<float>(sum[j] - source.zero_point * pixels);
            const float v = acc * scale;
            if (!out.is_float) {
              to.channel[0][j] = to_code(v, e);
            } else if (to.channel[j]) {
              const float r = activate(v, e);
              std::memcpy(to.channel[j], &r, 4);
            }
          }
        }
  });
  fill_all_halos(out, y, halo_value(node));
}

void Plan::run_add(const Node& node, const Step& s, uint8_t* arena) const {
  const Step& a = step(node.a);
  const Node& from = nodes_[static_cast<size_t>(node.a)];
  const bool two = node.b >= 0;
  const Step& b = two ? step(node.b) : a;
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
  args.b_spread = two && b.grid.h * b.grid.w == 1 && s.grid.h * s.grid.w > 1;
  const KernelTable& kernel = kernels();
  for_rows(s.grid, [&](int64_t quad, int64_t n, int64_t y) {
    const int64_t b_cell = b.grid.cell(n, args.b_spread ? 0 : y, 0);
    kernel.add(args, cells_at(a.grid, arena + a.at, quad, a.grid.cell(n, y, 0)),
               two ? cells_at(b.grid, arena + b.at, quad, b_cell) : Cells{},
               cells_at(s.grid, arena + s.at, quad, s.grid.cell(n, y, 0)), s.grid.w);
  });
  fill_all_halos(s.grid, arena + s.at, halo_value(node));
}

void Plan::run_flatten(const Node& node, const Step& s, uint8_t* arena) const {
  const Step& from = step(node.a);
  const Grid& in = from.grid;
  const Grid& out = s.grid;
  const int64_t image = in.h * in.w;
  const uint8_t* const x = arena + from.at;
  uint8_t* const y = arena + s.at;
  if (!in.is_float)  // the last quad may have channels that nothing below writes
    for (int64_t n = 0; n < out.n; ++n)
      std::memset(y + ((out.cells - 1) * out.plane + n) * 4, 0, 4);
  for (int64_t c = 0; c < in.channels; ++c)
    for (int64_t n = 0; n < in.n; ++n)
      for (int64_t p = 0; p < image; ++p) {
        const int64_t k = c * image + p, cell = in.cell(n, p / in.w, p % in.w);
        if (in.is_float)
          std::memcpy(y + (k * out.plane + n) * 4, x + (c * in.plane + cell) * 4, 4);
        else
          y[((k / 4) * out.plane + n) * 4 + k % 4] = x[((c / 4) * in.plane + cell) * 4 + c % 4];
      }
}

}  // namespace tops
