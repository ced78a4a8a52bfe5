// SPDX-License-Identifier: Apache-2.0
// Operator concat: values one behind the other along the channels, the rows, or the columns or
// tokens. Inputs that the memory plan put in their place are not copied.
#include <cstring>
#include <string>

#include "base/scalar_math.h"
#include "isa/isa.h"
#include "program/registry.h"
#include "tensor/for_each_row.h"

namespace tops {
namespace {

enum class Axis { kChannels, kRows, kColumns };

// Where an input begins in the value.
struct Place {
  int64_t channel = 0, row = 0, column = 0;
};

class Concat : public RowwiseOp {
 public:
  Concat(const Attributes& at, const Types& in) : requantize_(output_of(at, in[0])) {
    const int64_t axis = at.integer("axis", 1, in[0].rank - 1);
    // Tokens lie as images of one row.
    if (axis > 1) axis_ = axis == 3 || in[0].rank == 3 ? Axis::kColumns : Axis::kRows;
    bool known = true;
    int64_t channels = 0;
    for (const ValueType& part : in) {
      if (part.rank != in[0].rank || part.is_float != in[0].is_float)
        bad_node(at.op(), "inputs of one rank, all u8 or all floats", "different ones");
      if (axis > 1 && part.channels != in[0].channels)
        bad_node(at.op(), "inputs of " + std::to_string(in[0].channels) + " channels",
                 std::to_string(part.channels));
      known = known && part.channels > 0;
      channels += part.channels;
    }
    type_ = with_output(in[0], requantize_);
    if (type_.is_float != in[0].is_float) bad_node(at.op(), "y for u8", "none");
    if (axis == 1) type_.channels = known ? channels : 0;
  }

  Shape infer(const Shapes& inputs) const override {
    Shape made = inputs[0];
    for (size_t i = 1; i < inputs.size(); ++i) {
      Shape part = inputs[i];
      if (axis_ == Axis::kChannels) made.channels += part.channels;
      if (axis_ == Axis::kRows) {
        made.h += part.h;
        part.h = inputs[0].h;
      }
      if (axis_ == Axis::kColumns) {
        made.w += part.w;
        part.w = inputs[0].w;
      }
      need_same_size(inputs[0], part);
    }
    return made;
  }

  // Rows behind each other wait for those before them.
  bool streams(const Shapes&) const override { return axis_ != Axis::kRows; }
  bool concatenates() const override { return axis_ == Axis::kChannels; }

  void run(const NodeRun& node) const override {
    Place at;
    for (size_t i = 0; i < node.inputs(); ++i) {
      if (!node.in_its_place(i)) copy(node, i, at);
      if (axis_ == Axis::kChannels) at.channel += node.in(i).channels;
      if (axis_ == Axis::kRows) at.row += node.in(i).h;
      if (axis_ == Axis::kColumns) at.column += node.in(i).w;
    }
    fill_all_halos(node.out(), node.rows, node.y(), halo_value(type_));
  }

 private:
  void copy(const NodeRun& node, size_t i, const Place& at) const;

  Requantize requantize_;
  Axis axis_ = Axis::kChannels;
};

// Input i to the cells from `at` on.
void Concat::copy(const NodeRun& node, size_t i, const Place& at) const {
  const ActivationTensor &in = node.in(i), &out = node.out();
  const ValueType& source = node.in_type(i);
  const uint8_t* const x = node.x(i);
  uint8_t* const y = node.y();
  const bool floats = type_.is_float;
  const Epilogue e = make_epilogue(requantize_, {});
  uint8_t codes[256];  // what each code of the part is in the range of the whole
  for (int q = 0; q < 256; ++q)
    codes[q] = to_code(dequantized(static_cast<uint8_t>(q), source.scale, source.zero_point), e);
  const bool same =
      floats || (source.scale == type_.scale && source.zero_point == type_.zero_point);
  const KernelTable& kernel = kernels();
  const int64_t offset = at.channel;
  const Rows rows = axis_ == Axis::kRows ? Rows{0, in.h} : node.rows;
  parallel_for(in.packets, vectors_of(in, rows), [&](int64_t c, int) {
    for (int64_t n = 0; n < in.n; ++n)
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const uint8_t* const from = x + (c * in.channel_stride + in.packet(n, row, 0)) * 4;
        const int64_t place = out.packet(n, at.row + row, at.column);
        const int64_t to = floats ? offset + c : offset / 4 + c;
        uint8_t* const packet = y + (to * out.channel_stride + place) * 4;
        if (floats || (same && offset % 4 == 0)) {
          std::memcpy(packet, from, static_cast<size_t>(in.w) * 4);
        } else if (offset % 4 == 0) {
          kernel.lookup(from, in.w, codes, packet);
        } else {  // this part's channels lie across two packets of the whole
          for (int64_t j = 0; j < 4 && c * 4 + j < in.channels; ++j) {
            const int64_t k = offset + c * 4 + j;
            uint8_t* const byte = y + (k / 4 * out.channel_stride + place) * 4 + k % 4;
            for (int64_t p = 0; p < in.w; ++p) byte[p * 4] = codes[from[p * 4 + j]];
          }
        }
      }
  });
}

const RegisterOp<Concat> kConcat("concat", 2, 1024);

}  // namespace
}  // namespace tops
