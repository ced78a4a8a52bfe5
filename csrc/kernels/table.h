// SPDX-License-Identifier: Apache-2.0
// Kernel argument structs and the per-ISA dispatch table. Plain data: no torch, no Python. Arrays
// of one number an output channel are padded to kChannelPad; packets are the 4-byte channel packets
// of tensor/tensor.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/norm_args.h"

namespace tops {

// Memory that a kernel may read past the last packet of a tensor: one vector of the widest
// instruction set.
constexpr int64_t kSlackBytes = 256;
// Output channels in one register block of the dense kernel, and in one block of its packed
// weights.
constexpr int64_t kBlock = 8;
// Rows of k that one 64-byte group of dense codes holds for a block.
constexpr int64_t kGroup = 8;

// Bytes for the expanded weights of one block: ternary codes become quads, 8-bit quads may be
// widened to 16 bits.
constexpr int64_t dense_scratch(int64_t k) { return (k + kGroup) * kBlock * 8; }

// Most entries of an overflow-safe accumulation group: 8-bit quads whose products may be added in
// 16 bits (weights/overflow_groups.h).
constexpr int64_t kOverflowGroup = 4, kPairOverflowGroup = 2;

// Scale, bias and start are padded to this: the wide kernel reads them as two whole vectors of the
// widest instruction set.
constexpr int64_t kChannelPad = 32;
// Steps of a fine value's second packet in one of its first.
constexpr float kFineParts = 8.0f;

enum class Weights : int32_t { kTernary = 0, kInt8 = 1, kFloat = 2 };

// One nonzero quad (or float weight) of one output channel.
struct Entry {
  int32_t offset;  // in packets, from the first input packet of an output pixel
  int32_t weight;  // four int8, or the bits of a float
};

// Quads of two neighboring output channels at one position, where most quads are nonzero: they
// share one input read.
struct PairEntry {
  int32_t offset;
  int32_t weight[2];
};

enum class Values : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

// Sparse float weights: `channels` (1, 2 or 4) consecutive output channels share an entry, one
// input channel at one tap.
struct BlockArgs {
  int64_t channels;        // 0: the weights have another form
  const int64_t* row_ptr;  // [ceil(O / kBlock) * kBlock / channels + 1] first entry of each group
  const int32_t* offsets;  // [entries] in packets, from the first input packet of an output pixel
  const uint8_t* data;     // [entries][channels] of `values`
  Values values;
  int64_t tiles;  // of pixels, run through all weights before the next ones: they share input reads
};

// Four taps of one packet of a depthwise convolution; weight[4 * channel + tap].
struct TapGroup {
  int32_t offset[4];  // in packets
  int8_t weight[16];
};

// Epilogue, from accumulator to output packet: docs/architecture.md, "Integer semantics".
struct Epilogue {
  const int32_t* start;  // [O] first value of the accumulator: -zero_point * sum of the weights
  const float* scale;    // [O]
  const float* bias;     // [O]
  float lo, hi;          // activation, float output
  const float* slope;    // [O] PReLU slope, in place of bounds; or null
  float inv;             // 1 / output scale
  int32_t zero_point;    // of the output
  bool capped;           // whether a scaled sum may pass 2**30, where the conversion to int32 ends
  uint8_t qlo, qhi;      // the bounds as codes: rounding is monotone, so clamping codes is the same
  float res_scale;
  int32_t res_zero_point;
  // Gate, multiplied with the sigmoid of the sum before the residual is added.
  float gate_scale;
  int32_t gate_zero_point;
};

// A run of output pixels that is contiguous both in the flat index and in the output.
struct Segment {
  int64_t flat, length, packet;
};

// Dense weights, weights/packed.h.
struct DenseArgs {
  const int64_t* offsets;  // [k] bytes from the first input packet of an output pixel
  int64_t k;               // input packets of one group x taps
  const uint8_t* panels;
  int64_t panel_bytes;   // of a block of kBlock output channels
  int64_t group_blocks;  // blocks of a group of channels
  int64_t group_stride;  // bytes between the inputs of two groups
  bool sums_only;        // y takes the sums, in whole vectors, and there is no epilogue
};

// Sparse integer weights: CSR over output channels.
struct SparseArgs {
  const int64_t* row_ptr;  // [O + 1] first entry of each output channel
  const Entry* entries;
  // int8: [O][kOverflowGroup] how many groups of 4, 3, 2 and 1 entries each channel has, in the
  // order of its entries.
  const int32_t* overflow_groups;
};

// Sparse int8 entries over pairs of output channels.
struct PairArgs {
  const int64_t* row_ptr;          // [ceil(O / 2) + 1]
  const PairEntry* entries;        // null: the weights have another form
  const int32_t* overflow_groups;  // [ceil(O / 2)][kPairOverflowGroup]
};

struct DepthwiseArgs {
  const int32_t* row_ptr;  // [packets + 1] first group of each packet
  const TapGroup* groups;
};

struct OutputArgs {
  uint8_t* data;           // packet 0
  int64_t channel_stride;  // bytes from one channel packet to the next
  bool is_float;
  uint32_t halo;  // what a packet outside the image holds
  // Direct, where output packets of flat indices are consecutive: one bit per flat index, set for
  // pixels, and the packet of flat index 0.
  const uint8_t* valid;  // null: not direct
  int64_t origin;
  // Not direct, and of the wide kernel.
  const Segment* segments;
  int64_t segment_count;
};

// A residual or gate: its packets lie as those of the output.
struct OperandArgs {
  const uint8_t* data;  // or null
  int64_t channel_stride;
  bool is_float;
};

// A convolution as an implicit GEMM: output pixel (n, y, x) has the flat index (n * image_rows + y)
// * pitch + x, and its input packets lie at index + offset (tensor/conv_input.h). One form of the
// weights is set.
struct ConvArgs {
  const uint8_t* x;  // input packet of flat index 0
  int64_t pixels;    // flat indices
  int64_t outputs;   // O
  Weights weights;
  DenseArgs dense;
  SparseArgs sparse;
  PairArgs pairs;
  BlockArgs blocks;
  DepthwiseArgs depthwise;
  Epilogue epilogue;
  OutputArgs y;
  OperandArgs residual, gate;
};

struct AddArgs {
  bool a_float, b_float, has_b, float_out;
  bool multiply;  // a * b instead of a + b
  bool b_spread;  // one packet of b meets every packet of a
  float a_scale;
  int32_t a_zero_point;
  Epilogue epilogue;  // the residual fields belong to b
};

// Bytes of a weight row of a linear layer that vectors of any width divide: packed codes come in
// blocks of as many bytes, weights/packed_rows.h.
constexpr int64_t kRowBlock = 64;

enum class RowCodes : int32_t { kInt8 = 0, kTwoBit = 1, kBaseThree = 2 };

// y[i][n] = sum over k of w[n][k] * x[i][k]; ternary: of (w + 1) * x with signed x.
struct LinearArgs {
  const uint8_t* x;  // [m][x_stride]: u8, ternary: int8; as many as a weight row has numbers
  int64_t x_stride, m;
  const uint8_t* weight_rows;
  int64_t row_bytes;  // a multiple of kRowBlock
  RowCodes codes;
  int32_t* y;  // [m][y_stride]
  int64_t y_stride;
};

// y[i][n] = (sum over k of w[n][k] * x[i][k]) * scale[n] + bias[n] in float32, weights two-bit or
// int8.
struct FloatLinearArgs {
  const void* x;  // float32 or bfloat16 [m][x_stride], 0 from the row's length to width
  int64_t x_stride, m;
  const uint8_t* weight_rows;
  int64_t row_bytes, width;  // bytes and weights of a row, padding included
  RowCodes codes;
  const float* scale;
  const float* bias;  // or null
  float* y;           // [m][y_stride]
  int64_t y_stride;
};

// The sums of LinearArgs of one input row to float32.
struct LinearEpilogue {
  const int32_t* sums;  // of the weights of each row
  int32_t shift;        // -zero_point, ternary: 128 - zero_point
  int32_t x_sum;        // ternary: of the signed inputs; else 0
  const float* scale;
  float x_scale;      // the scale of sums is the rounded product of both
  const float* bias;  // or null
};

// Start of a run of packets of four channels: one pointer for u8 packets, one a channel for float
// (null: absent).
struct Packets {
  uint8_t* channel[4];
};

// uint8 range of fake quantization: q = rint(x * inv), clamped to lo .. hi.
struct FakeRange {
  float scale, inv;  // inv = 1 / scale
  float lo, hi;      // -zero_point, 255 - zero_point
};

// Of gradients / scale: times the rounding error where x is kept, and where x is clipped.
struct FakeSums {
  double rounding, below, above;
};

// Partial sums of these, each element in the lane of its index, so that every ISA adds alike.
struct FakeLanes {
  static constexpr int64_t kCount = 16;
  float rounding[kCount], below[kCount], above[kCount];
};

// Densities (fractions of nonzero quads) below which the sparse loop is the faster one: where the
// two met when measured on every stage of a ResNet. More than 1: it always is.
struct SparseBelow {
  double ternary, pointwise;  // filters of several taps, of one
  double int8, real;
  double pairs_from;  // density from which 8-bit channels go in pairs
};

// Bilinear interpolation along a row: output i is the weighted sum of two pixels of the source.
struct Bilinear {
  const int32_t *first, *second;
  const float *first_weight, *second_weight;
};

// y = x * (sigmoid(gate + low) - offset) + residual; low and residual may be null, y may be x.
struct GateRow {
  const float *x, *gate, *low, *residual;
  float offset;
  float* y;
};

// Functions with kernels of their own; kLeakyRelu: a is the slope.
enum class FloatMap { kLeakyRelu, kSigmoid, kSilu, kGelu };

struct KernelTable {
  const char* name;
  SparseBelow sparse_below;
  int64_t lanes;
  int64_t sparse_vectors;  // the largest tile of the sparse kernel
  // Dot products of bytes read their inputs less 128: sums lack 128 times the sum of the weights,
  // which the start value or the epilogue adds.
  bool signed_input;
  // Blocks of kBlock output channels [begin, end) of all pixels [first, last); first is a multiple
  // of lanes. scratch: dense_scratch(k) bytes for integer weights.
  void (*conv_dense)(const ConvArgs&, int64_t begin, int64_t end, int64_t first, int64_t last,
                     uint8_t* scratch);
  // conv_dense with channels in the lanes: blocks of 2 * lanes output channels, row segments
  // [first, last). Integer weights and u8 output, no groups; writes pixels only, no halo.
  void (*conv_wide)(const ConvArgs&, int64_t begin, int64_t end, int64_t first, int64_t last,
                    uint8_t* scratch);
  int64_t (*wide_scratch)(int64_t k);  // bytes
  double wide_speed;                   // of its lanes, relative to those of conv_dense
  // Quads of output channels [begin, end).
  void (*conv_sparse)(const ConvArgs&, int64_t begin, int64_t end, int64_t first, int64_t last);
  // Blocks of kBlock output channels [begin, end). scratch: the float32 of a block's values.
  void (*conv_blocks)(const ConvArgs&, int64_t begin, int64_t end, int64_t first, int64_t last,
                      uint8_t* scratch);
  // Depthwise: packets [begin, end).
  void (*conv_depthwise)(const ConvArgs&, int64_t begin, int64_t end, int64_t first, int64_t last);
  // Float 3 x 3 convolutions by pairs of rows, kernels/winograd.inl: four input rows of a channel
  // to n packets of each of four arrays, `apart` bytes from each other (whole vectors are read and
  // written), and the products of these to outputs a, b (or null), whose pixels begin at flat index
  // 0.
  void (*winograd_rows)(const uint8_t* const d[4], int64_t n, uint8_t* to, int64_t apart);
  void (*winograd_finish)(const ConvArgs& a, const ConvArgs* b, const uint8_t* m,
                          int64_t channel_stride, int64_t apart);
  // Weight rows [begin, end) times all input rows.
  void (*linear)(const LinearArgs&, int64_t begin, int64_t end);
  // GEMV of float rows.
  void (*linear_float)(const FloatLinearArgs&, int64_t begin, int64_t end);
  // y holds n sums, then (sum + shift * sums - x_sum) * scale + bias in float32.
  void (*linear_epilogue)(const LinearEpilogue&, int64_t n, float* y);
  // n floats to as many u8 values, in their order.
  void (*quantize_row)(const float* x, int64_t n, float inv, int32_t zero_point, uint8_t* q);
  // A max pool of packets, in two passes: kernel_h + kernel_w maxima an output, not their product.
  // Both may read one vector (times the stride) more than asked for.
  void (*max_rows)(const uint8_t* const* rows, int64_t count, int64_t n, bool is_float, uint8_t* y);
  void (*max_columns)(const uint8_t* x, int64_t taps, int64_t stride, int64_t dilation,
                      bool is_float, uint8_t* y, int64_t n);
  // y[i] = table[x[i]] for n packets; in place is fine.
  void (*lookup)(const uint8_t* x, int64_t n, const uint8_t* table, uint8_t* y);
  // y[i] = the function of x[i]; in place is fine.
  void (*map_floats)(FloatMap map, float a, const float* x, int64_t n, float* y);
  // Bilinear interpolation of one row to n pixels: of one float channel, or of packets as numbers
  // that count from the zero point, four a pixel.
  void (*bilinear_floats)(const Bilinear&, const float* x, int64_t n, float* y);
  void (*bilinear_packets)(const Bilinear&, const uint8_t* x, int32_t zero_point, int64_t n,
                           float* y);
  // y = a_weight * a + b_weight * b.
  void (*blend_rows)(const float* a, const float* b, float a_weight, float b_weight, int64_t n,
                     float* y);
  void (*gate_row)(const GateRow&, int64_t n);
  void (*layer_norm)(const LayerNormArgs&);
  // Softmax in place.
  void (*softmax_rows)(const SoftmaxArgs&);
  // Attention on codes: scores to shares of a query, and sums of values by shares to the result.
  void (*attention_shares)(const ShareArgs&);
  void (*attention_mix)(const MixArgs&);
  // y[i * count + k] = x[k][i] for i < n.
  void (*interleave)(const float* const* x, int64_t count, int64_t n, float* y);
  void (*add)(const AddArgs&, const Packets& a, const Packets& b, const Packets& y, int64_t n);
  // One row of pixels: four float channels (null: absent) to u8 packets, and back.
  void (*quantize)(const float* const x[4], int64_t n, float inv, int32_t zero_point,
                   uint8_t* packets);
  // Two-term 11-bit: quantize, and the rounding residual in steps an eighth as large, to `rest`.
  void (*quantize_fine)(const float* const x[4], int64_t n, float inv, int32_t zero_point,
                        uint8_t* packets, uint8_t* rest);
  void (*dequantize)(const uint8_t* packets, int64_t n, float scale, int32_t zero_point,
                     float* const y[4]);
  // y[i] = x[i * stride], whole packets; may read one packet past the last one.
  void (*gather)(const uint8_t* x, int64_t stride, int64_t n, uint8_t* y);
  // Adds, of `rows` runs of n u8 packets, `pitch` packets apart, each of the four channels to
  // sum[4] and its square to square[4].
  void (*channel_sums)(const uint8_t* x, int64_t rows, int64_t pitch, int64_t n, int64_t* sum,
                       int64_t* square);
  // y = q, clipped; NaN stays NaN.
  void (*fake_quantize)(const float* x, int64_t n, const FakeRange& r, float* y);
  // dx = grad / scale where x is kept, else 0; adds to sums.
  void (*fake_quantize_grad)(const float* x, const float* grad, int64_t n, const FakeRange& r,
                             float* dx, FakeSums& sums);
  // Ceilings for benchmarks: dot products from registers (returns byte products made), and a plain
  // read.
  int64_t (*dot_burst)(int64_t rounds);
  int64_t (*float_burst)(int64_t rounds);
  void (*read_burst)(const uint8_t* p, int64_t bytes);
};

const KernelTable& scalar_kernels();
#if defined(__x86_64__)
const KernelTable& avx2_kernels();
const KernelTable& avxvnni_kernels();
const KernelTable& avx512vnni_kernels();
// KernelTable::linear_float of bfloat16 rows, for AVX512_BF16.
void linear_bfloat16(const FloatLinearArgs&, int64_t begin, int64_t end);
#elif defined(__aarch64__)
const KernelTable& neon_dot_kernels();
#endif

}  // namespace tops
