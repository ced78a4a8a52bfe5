// SPDX-License-Identifier: Apache-2.0
// What a network is made of.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/epilogue.h"
#include "ops/layer_weights.h"
#include "tensor/conv_input.h"

namespace tops {

enum class Op {
  kInput,
  kQuantize,
  kDequantize,
  kConv,
  kLinear,
  kMaxPool,
  kAvgPool,
  kAdaptiveAvgPool,
  kAdd,
  kClamp,
  kFlatten,
  kActivation,
  kMul,
  kConcat,
  kSlice,
  kPixelShuffle,
  kPixelUnshuffle,
  kChannelShuffle,
  kResize,
  kSoftmax,
  kLayerNorm
};

const char* op_name(Op op);

enum class Function {
  kAffine,
  kLeakyRelu,
  kHardswish,
  kHardsigmoid,
  kSilu,
  kSigmoid,
  kTanh,
  kGelu,
  kGeluTanh,
  kElu,
  kSoftplus,
  kMish,
  kExp
};

// What only some nodes need.
struct Detail {
  std::vector<int> parts;  // concat: every input
  Function function = Function::kAffine;
  std::vector<float> params;   // of the function; layer_norm: weight, then bias
  std::vector<float> table;    // function of a u8 value: what each code becomes, as floats
  std::vector<uint8_t> codes;  // and as codes of the output
  int64_t factor_h = 1, factor_w = 1, crop_h = 0, crop_w = 0;
  int64_t begin = 0, groups = 1;  // slice, channel_shuffle
  int64_t out_h = 0, out_w = 0;   // resize; 0: by zoom, or as large as the second input
  float zoom_h = 0, zoom_w = 0, eps = 0;
  bool bilinear = false, align = false;
};

struct Node {
  Op op = Op::kInput;
  int a = -1, b = -1;    // inputs
  int gate = -1;         // of a convolution: y = sigmoid(y) * gate, then b is added
  int64_t channels = 0;  // of the output; flatten: 0 (depends on the image)
  bool is_float = false, rank2 = false, fine = false;
  float scale = 1.0f;  // of the output, u8
  int32_t zero_point = 0;
  Requantize requantize{};
  std::shared_ptr<LayerWeights> layer;
  Window window;
  int64_t kernel_h = 1, kernel_w = 1, divisor = 0, out_h = 0, out_w = 0;
  bool ceil = false, include_pad = true;
  std::shared_ptr<const Detail> detail;
};

// Every value that a node reads.
std::vector<int> inputs_of(const Node& node);

// The value `id` as something that a node reads beside its input; none where id is negative.
Operand operand_of(const std::vector<Node>& nodes, int id);

// A packet of the value outside the image.
inline uint32_t halo_value(const Node& n) { return n.is_float ? 0u : u8_packet(n.zero_point); }

}  // namespace tops
