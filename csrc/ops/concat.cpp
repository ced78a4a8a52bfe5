// SPDX-License-Identifier: Apache-2.0
// Operator concat: values one behind the other along the channels. Inputs that the memory plan put
// in their place are not copied.
#include <cstring>
#include <string>

#include "base/scalar_math.h"
#include "isa/isa.h"
#include "program/registry.h"
#include "tensor/for_each_row.h"

namespace tops {
namespace {

class Concat : public RowwiseOp {
 public:
  Concat(const Attributes& at, const Types& in) : requantize_(output_of(at, in[0])) {
    bool known = true;
    int64_t channels = 0;
    for (const ValueType& part : in) {
      if (part.rank != in[0].rank || part.is_float != in[0].is_float)
        bad_node(at.op(), "inputs of one rank, all u8 or all floats", "different ones");
      known = known && part.channels > 0;
      channels += part.channels;
    }
    type_ = with_output(in[0], requantize_);
    if (type_.is_float != in[0].is_float) bad_node(at.op(), "y for u8", "none");
    type_.channels = known ? channels : 0;
  }

  Shape infer(const Shapes& inputs) const override {
    Shape made = inputs[0];
    made.channels = 0;
    for (const Shape& part : inputs) {
      need_same_size(made, part);
      made.channels += part.channels;
    }
    return made;
  }

  bool concatenates() const override { return true; }

  void run(const NodeRun& node) const override {
    int64_t offset = 0;
    for (size_t i = 0; i < node.inputs(); ++i) {
      if (!node.in_its_place(i)) copy(node, i, offset);
      offset += node.in(i).channels;
    }
    fill_all_halos(node.out(), node.rows, node.y(), halo_value(type_));
  }

 private:
  // Input i to the channels from `offset` on.
  void copy(const NodeRun& node, size_t i, int64_t offset) const;

  Requantize requantize_;
};

void Concat::copy(const NodeRun& node, size_t i, int64_t offset) const {
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
  parallel_for(in.packets, vectors_of(in, node.rows), [&](int64_t c, int) {
    for (int64_t n = 0; n < in.n; ++n)
      for (int64_t row = node.rows.begin; row < node.rows.end; ++row) {
        const uint8_t* const from = x + (c * in.channel_stride + in.packet(n, row, 0)) * 4;
        const int64_t to = floats ? offset + c : offset / 4 + c;
        uint8_t* const packet = y + (to * out.channel_stride + out.packet(n, row, 0)) * 4;
        if (floats || (same && offset % 4 == 0)) {
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
}

const RegisterOp<Concat> kConcat("concat", 2, 1024);

}  // namespace
}  // namespace tops
