// SPDX-License-Identifier: Apache-2.0
// Nodes that put values elsewhere or blend neighbors: concat, slice, shuffles, resize.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/scalar_math.h"
#include "isa/isa.h"
#include "program/program.h"
#include "tensor/for_each_row.h"
#include "tensor/interpolation.h"

namespace tops {
namespace {

// Where an output row comes from: its input channel, line and first column.
struct Row {
  int64_t channel, line, column;
};

// Output pixel p of a row reads column row.column + column[p] of channel row.channel + extra[p].
struct Moved {
  std::vector<int64_t> column, extra;
  explicit Moved(int64_t width)
      : column(static_cast<size_t>(width)), extra(static_cast<size_t>(width)) {
    for (int64_t p = 0; p < width; ++p) column[static_cast<size_t>(p)] = p;
  }
};

// whole: channels keep their places in the quads, so u8 packets move as they are.
template <class Source>
void move_rows(const ActivationTensor& in, const ActivationTensor& out, Rows rows, const uint8_t* x,
               uint8_t* y, bool whole, const Moved& columns, const Source& source) {
  const bool packets = out.is_float || whole;
  const int64_t step = out.is_float ? 1 : 4;
  parallel_for(out.packets, 4 * vectors_of(out, rows), [&](int64_t c, int) {
    for (int64_t n = 0; n < out.n; ++n)
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        uint8_t* const to = y + (c * out.channel_stride + out.packet(n, row, 0)) * 4;
        for (int64_t j = 0; j < (packets ? 1 : 4); ++j) {
          const bool absent = c * step + j >= out.channels;
          const Row from = absent ? Row{} : source(c * step + j, row);
          const int64_t line = in.packet(n, from.line, from.column);
          for (int64_t p = 0; p < out.w; ++p) {
            const auto i = static_cast<size_t>(p);
            const int64_t channel = from.channel + columns.extra[i];
            const int64_t packet = line + columns.column[i];
            if (packets)
              std::memcpy(to + p * 4, x + (channel / step * in.channel_stride + packet) * 4, 4);
            else
              to[p * 4 + j] =
                  absent ? 0 : x[(channel / 4 * in.channel_stride + packet) * 4 + channel % 4];
          }
        }
      }
  });
}

void shuffle_floats(const ActivationTensor& in, const ActivationTensor& out, Rows rows,
                    const uint8_t* x, uint8_t* y, const Detail& d) {
  const int64_t fh = d.factor_h, fw = d.factor_w, whole = out.w / fw;
  const KernelTable& kernel = kernels();
  parallel_for(out.packets, 2 * vectors_of(out, rows), [&](int64_t c, int) {
    std::vector<const float*> from(static_cast<size_t>(fw));
    for (int64_t n = 0; n < out.n; ++n)
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t first = (c * fh + row % fh) * fw, packet = in.packet(n, row / fh, 0);
        for (int64_t k = 0; k < fw; ++k)
          from[static_cast<size_t>(k)] =
              reinterpret_cast<const float*>(x + ((first + k) * in.channel_stride + packet) * 4);
        float* const to =
            reinterpret_cast<float*>(y + (c * out.channel_stride + out.packet(n, row, 0)) * 4);
        kernel.interleave(from.data(), fw, whole, to);
        for (int64_t p = whole * fw; p < out.w; ++p)
          to[p] = from[static_cast<size_t>(p % fw)][p / fw];
      }
  });
}

}  // namespace

// Fills g and returns true for the nodes of this file.
bool MemoryPlan::infer_move(const Node& node, ActivationTensor& g) const {
  const ActivationTensor& in = step(node.a).grid;
  int64_t channels = node.channels, h = in.h, w = in.w;
  switch (node.op) {
    case Op::kConcat:
      channels = 0;
      for (const int part : node.detail->parts) {
        const ActivationTensor& other = step(part).grid;
        if (other.h != h || other.w != w)
          throw Error(ErrorKind::kUnsupportedShape, "concat needs images of one size.");
        channels += other.channels;
      }
      break;
    case Op::kSlice:
      break;
    case Op::kPixelShuffle:
      h = checked_mul(h, node.detail->factor_h) - node.detail->crop_h;
      w = checked_mul(w, node.detail->factor_w) - node.detail->crop_w;
      break;
    case Op::kPixelUnshuffle:
      if (h % node.detail->factor_h || w % node.detail->factor_w)
        throw Error(ErrorKind::kUnsupportedShape,
                    "pixel_unshuffle needs an image that divides by its factors.");
      h /= node.detail->factor_h;
      w /= node.detail->factor_w;
      break;
    case Op::kResize:
      if (node.b >= 0) {
        h = step(node.b).grid.h;
        w = step(node.b).grid.w;
      } else if (node.detail->out_h) {
        h = node.detail->out_h;
        w = node.detail->out_w;
      } else {  // in double, as Python does
        h = static_cast<int64_t>(
            std::floor(static_cast<double>(h) * static_cast<double>(node.detail->zoom_h)));
        w = static_cast<int64_t>(
            std::floor(static_cast<double>(w) * static_cast<double>(node.detail->zoom_w)));
      }
      break;
    default:
      return false;
  }
  if (h < 1 || w < 1)
    throw Error(ErrorKind::kUnsupportedShape,
                std::string(op_name(node.op)) + " leaves no pixels.\n  Use a larger image.");
  g = ActivationTensor::make(channels, node.is_float, in.n, h, w, 0);
  return true;
}

void MemoryPlan::run_move(const NodeTask& w, const RunContext& f) const {
  const Node& node = w.node;
  const ActivationTensor &in = step(node.a).grid, &out = w.step.grid;
  const Detail& d = *node.detail;
  const uint8_t* const x = data(f, node.a);
  uint8_t* const y = w.y;
  Moved columns(out.w);
  const int64_t fh = d.factor_h, fw = d.factor_w, each = in.channels / d.groups;
  for (int64_t p = 0; p < out.w; ++p) {
    const auto i = static_cast<size_t>(p);
    if (node.op == Op::kPixelShuffle) {
      columns.column[i] = p / fw;
      columns.extra[i] = p % fw;
    } else if (node.op == Op::kPixelUnshuffle) {
      columns.column[i] = p * fw;
    }
  }
  if (node.op == Op::kPixelShuffle && out.is_float)
    shuffle_floats(in, out, w.rows, x, y, d);
  else if (node.op == Op::kPixelShuffle)
    move_rows(in, out, w.rows, x, y, false, columns,
              [&](int64_t c, int64_t row) { return Row{(c * fh + row % fh) * fw, row / fh, 0}; });
  else if (node.op == Op::kPixelUnshuffle)
    move_rows(in, out, w.rows, x, y, false, columns, [&](int64_t c, int64_t row) {
      return Row{c / (fh * fw), row * fh + c / fw % fh, c % fw};
    });
  else if (node.op == Op::kChannelShuffle)
    move_rows(in, out, w.rows, x, y, false, columns, [&](int64_t c, int64_t row) {
      return Row{c % d.groups * each + c / d.groups, row, 0};
    });
  else
    move_rows(in, out, w.rows, x, y, d.begin % 4 == 0, columns,
              [&](int64_t c, int64_t row) { return Row{d.begin + c, row, 0}; });
  fill_all_halos(out, w.rows, y, halo_value(node));
}

void MemoryPlan::run_concat(const NodeTask& w, const RunContext& f) const {
  const Node& node = w.node;
  const ActivationTensor& out = w.step.grid;
  uint8_t* const y = w.y;
  const Epilogue e = make_epilogue(node.requantize, {});
  const KernelTable& kernel = kernels();
  int64_t offset = 0;
  for (const int id : node.detail->parts) {
    const Node& source = nodes_[static_cast<size_t>(id)];
    const ActivationTensor& in = step(id).grid;
    if (homes_[static_cast<size_t>(id)].concat == w.id) {  // lies there
      offset += in.channels;
      continue;
    }
    const uint8_t* const x = data(f, id);
    uint8_t codes[256];  // what each code of the part is in the range of the whole
    for (int q = 0; q < 256; ++q)
      codes[q] = to_code(dequantized(static_cast<uint8_t>(q), source.scale, source.zero_point), e);
    const bool same =
        node.is_float || (source.scale == node.scale && source.zero_point == node.zero_point);
    parallel_for(in.packets, vectors_of(in, w.rows), [&](int64_t c, int) {
      for (int64_t n = 0; n < in.n; ++n)
        for (int64_t row = w.rows.begin; row < w.rows.end; ++row) {
          const uint8_t* const from = x + (c * in.channel_stride + in.packet(n, row, 0)) * 4;
          const int64_t to = node.is_float ? offset + c : offset / 4 + c;
          uint8_t* const packet = y + (to * out.channel_stride + out.packet(n, row, 0)) * 4;
          if (node.is_float || (same && offset % 4 == 0)) {
            std::memcpy(packet, from, static_cast<size_t>(in.w) * 4);
          } else if (offset % 4 == 0) {
            kernel.lookup(from, in.w, codes, packet);
          } else {  // this part's channels lie across two packets of the whole
            for (int64_t j = 0; j < 4 && c * 4 + j < in.channels; ++j) {
              const int64_t k = offset + c * 4 + j;
              uint8_t* const byte =
                  y + (k / 4 * out.channel_stride + out.packet(n, row, 0)) * 4 + k % 4;
              for (int64_t p = 0; p < in.w; ++p) byte[p * 4] = codes[from[p * 4 + j]];
            }
          }
        }
    });
    offset += in.channels;
  }
  fill_all_halos(out, w.rows, y, halo_value(node));
}

void MemoryPlan::run_resize(const NodeTask& w, const RunContext& f) const {
  const Node& node = w.node;
  const ActivationTensor &in = step(node.a).grid, &out = w.step.grid;
  const Detail& d = *node.detail;
  const uint8_t* const x = data(f, node.a);
  uint8_t* const y = w.y;
  const float tall = sampling_ratio(in.h, out.h, d.align, d.zoom_h);
  const float wide = sampling_ratio(in.w, out.w, d.align, d.zoom_w);
  if (!d.bilinear) {
    Moved columns(out.w);
    for (int64_t p = 0; p < out.w; ++p)
      columns.column[static_cast<size_t>(p)] = nearest(p, in.w, wide);
    move_rows(in, out, w.rows, x, y, true, columns,
              [&](int64_t c, int64_t row) { return Row{c, nearest(row, in.h, tall), 0}; });
    fill_all_halos(out, w.rows, y, halo_value(node));
    return;
  }
  const BilinearColumns columns(in.w, 0, out.w, wide, d.align);
  const KernelTable& kernel = kernels();
  const int64_t width = out.w * (in.is_float ? 1 : 4);
  parallel_for(out.packets, 4 * vectors_of(out, w.rows), [&](int64_t c, int) {
    Buffer memory(3 * width * 4);
    float* const blended = reinterpret_cast<float*>(memory.data()) + 2 * width;
    for (int64_t n = 0; n < out.n; ++n) {
      // Of the last two source rows, which most output rows share with the next.
      int64_t held[2] = {-1, -1};
      const auto stretched = [&](int64_t line) -> const float* {
        float* const row = reinterpret_cast<float*>(memory.data()) + line % 2 * width;
        if (held[line % 2] == line) return row;
        held[line % 2] = line;
        const uint8_t* const from = x + (c * in.channel_stride + in.packet(n, line, 0)) * 4;
        if (in.is_float)
          kernel.bilinear_floats(columns.bilinear(), reinterpret_cast<const float*>(from), out.w,
                                 row);
        else
          kernel.bilinear_packets(columns.bilinear(), from, node.zero_point, out.w, row);
        return row;
      };
      for (int64_t row = w.rows.begin; row < w.rows.end; ++row) {
        const Sample v = sample(row, in.h, tall, d.align);
        const float *const above = stretched(v.first), *const below = stretched(v.second);
        uint8_t* const to = y + (c * out.channel_stride + out.packet(n, row, 0)) * 4;
        kernel.blend_rows(above, below, v.first_weight, v.second_weight, width,
                          in.is_float ? reinterpret_cast<float*>(to) : blended);
        if (!in.is_float) kernel.quantize_row(blended, width, 1.0f, node.zero_point, to);
      }
    }
  });
  fill_all_halos(out, w.rows, y, halo_value(node));
}

}  // namespace tops
