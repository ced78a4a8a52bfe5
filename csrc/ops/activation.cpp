// SPDX-License-Identifier: Apache-2.0
// Operator activation: a function of one number. u8 goes through a table that the caller computed,
// floats through the float32 functions of this file.
#include <algorithm>
#include <cmath>
#include <string>

#include "base/scalar_math.h"
#include "isa/isa.h"
#include "program/registry.h"
#include "tensor/for_each_row.h"

namespace tops {
namespace {

// Parameters of a function, 0 where it has fewer.
struct Parameters {
  float a, b;
};

float softplus_of(float v) { return std::max(v, 0.0f) + std::log1p(std::exp(-std::fabs(v))); }

float affine(float v, Parameters p) { return v * p.a + p.b; }

float hardsigmoid(float v, Parameters) { return std::min(std::max(v + 3.0f, 0.0f), 6.0f) / 6.0f; }

// ONNX HardSigmoid, with alpha and beta.
float affine_hardsigmoid(float v, Parameters p) {
  return std::max(0.0f, std::min(1.0f, v * p.a + p.b));
}

float hardswish(float v, Parameters p) { return v * hardsigmoid(v, p); }

float tanh_of(float v, Parameters) { return std::tanh(v); }

float gelu_tanh(float v, Parameters) {
  return 0.5f * v * (1.0f + std::tanh(0.7978845608f * (v + 0.044715f * v * v * v)));
}

float elu(float v, Parameters p) { return v > 0.0f ? v : p.a * std::expm1(v); }

float softplus(float v, Parameters p) { return v * p.a > p.b ? v : softplus_of(v * p.a) / p.a; }

float mish(float v, Parameters) { return v * std::tanh(softplus_of(v)); }

float exp_of(float v, Parameters) { return std::exp(v); }

float abs_of(float v, Parameters) { return std::fabs(v); }

float square(float v, Parameters) { return v * v; }

float sqrt_of(float v, Parameters) { return std::sqrt(v); }

float rsqrt(float v, Parameters) { return 1.0f / std::sqrt(v); }

float reciprocal(float v, Parameters) { return 1.0f / v; }

float pow_of(float v, Parameters p) { return std::pow(v, p.a); }

float log_of(float v, Parameters) { return std::log(v); }

float erf_of(float v, Parameters) { return std::erf(v); }

float sin_of(float v, Parameters) { return std::sin(v); }

float cos_of(float v, Parameters) { return std::cos(v); }

float celu(float v, Parameters p) { return v > 0.0f ? v : p.a * std::expm1(v / p.a); }

// The two numbers of ternary_ops/reference/activations.py.
float selu(float v, Parameters) { return 1.05070099f * elu(v, {1.67326324f, 0.0f}); }

float quick_gelu(float v, Parameters) { return v / (1.0f + std::exp(-1.702f * v)); }

float logsigmoid(float v, Parameters) { return -softplus_of(-v); }

float hard_mish(float v, Parameters) { return 0.5f * v * std::min(std::max(v + 2.0f, 0.0f), 2.0f); }

float softsign(float v, Parameters) { return v / (1.0f + std::fabs(v)); }

float tanhshrink(float v, Parameters) { return v - std::tanh(v); }

float softshrink(float v, Parameters p) {
  return std::copysign(std::max(std::fabs(v) - p.a, 0.0f), v);
}

float hardshrink(float v, Parameters p) { return std::fabs(v) > p.a ? v : 0.0f; }

float threshold(float v, Parameters p) { return v > p.a ? v : p.b; }

// y[i] = function of x[i]; y may be x.
using MapRow = void (*)(const KernelTable&, Parameters, const float* x, int64_t n, float* y);

template <float (*kFunction)(float, Parameters)>
void map_row(const KernelTable&, Parameters p, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = kFunction(x[i], p);
}

template <FloatMap kMap>
void map_by_kernel(const KernelTable& kernel, Parameters p, const float* x, int64_t n, float* y) {
  kernel.map_floats(kMap, p.a, x, n, y);
}

struct Function {
  const char* name;
  size_t params;
  MapRow map;
};

const Function kFunctions[] = {
    {"affine", 2, map_row<affine>},
    {"leaky_relu", 1, map_by_kernel<FloatMap::kLeakyRelu>},
    {"hardswish", 0, map_row<hardswish>},
    {"hardsigmoid", 0, map_row<hardsigmoid>},
    {"affine_hardsigmoid", 2, map_row<affine_hardsigmoid>},
    {"silu", 0, map_by_kernel<FloatMap::kSilu>},
    {"sigmoid", 0, map_by_kernel<FloatMap::kSigmoid>},
    {"tanh", 0, map_row<tanh_of>},
    {"gelu", 0, map_by_kernel<FloatMap::kGelu>},
    {"gelu_tanh", 0, map_row<gelu_tanh>},
    {"elu", 1, map_row<elu>},
    {"softplus", 2, map_row<softplus>},
    {"mish", 0, map_row<mish>},
    {"exp", 0, map_row<exp_of>},
    {"abs", 0, map_row<abs_of>},
    {"square", 0, map_row<square>},
    {"sqrt", 0, map_row<sqrt_of>},
    {"rsqrt", 0, map_row<rsqrt>},
    {"reciprocal", 0, map_row<reciprocal>},
    {"pow", 1, map_row<pow_of>},
    {"log", 0, map_row<log_of>},
    {"erf", 0, map_row<erf_of>},
    {"sin", 0, map_row<sin_of>},
    {"cos", 0, map_row<cos_of>},
    {"celu", 1, map_row<celu>},
    {"selu", 0, map_row<selu>},
    {"quick_gelu", 0, map_row<quick_gelu>},
    {"logsigmoid", 0, map_row<logsigmoid>},
    {"hard_mish", 0, map_row<hard_mish>},
    {"softsign", 0, map_row<softsign>},
    {"tanhshrink", 0, map_row<tanhshrink>},
    {"softshrink", 1, map_row<softshrink>},
    {"hardshrink", 1, map_row<hardshrink>},
    {"threshold", 2, map_row<threshold>},
};

const Function& function_of(const Attributes& at, size_t params) {
  const std::string& name = at.text("fn");
  for (const Function& f : kFunctions)
    if (name == f.name && params == f.params) return f;
  bad_node(at.op(), "a function and its parameters",
           "'" + name + "' with " + std::to_string(params) + " parameters");
}

// Attributes: fn; params, of the function; table, of u8: what each of the 256 codes becomes.
class Activation : public RowwiseOp {
 public:
  Activation(const Attributes& at, const Types& in) {
    const std::vector<float> params = at.floats("params");
    map_ = function_of(at, params.size()).map;
    parameters_.a = params.empty() ? 0.0f : params[0];
    parameters_.b = params.size() < 2 ? 0.0f : params[1];
    if (at.has("table")) table_ = at.floats("table");
    if (table_.size() != (in[0].is_float ? 0u : 256u))
      bad_node(at.op(), "a table of 256 values for u8 and none for floats",
               std::to_string(table_.size()) + " values");
    const Requantize q = output_of(at, in[0]);
    type_ = with_output(in[0], q);
    if (type_.is_float) return;
    const Epilogue e = make_epilogue(q, {});
    for (const float v : table_) codes_.push_back(to_code(v, e));
  }

  bool in_place() const override { return true; }
  void run(const NodeRun& node) const override;

 private:
  MapRow map_;
  Parameters parameters_;
  std::vector<float> table_;    // of u8: what each code becomes, as floats
  std::vector<uint8_t> codes_;  // and as codes of the output
};

void Activation::run(const NodeRun& node) const {
  const ActivationTensor &in = node.in(0), &out = node.out();
  uint8_t *const from = node.x(0), *const to = node.y();
  const KernelTable& kernel = kernels();
  parallel_for(quads_of(out), 16 * vectors_of(out, node.rows), [&](int64_t quad, int) {
    for (int64_t n = 0; n < out.n; ++n)
      for (int64_t row = node.rows.begin; row < node.rows.end; ++row) {
        const Packets x = packets_at(in, from, quad, in.packet(n, row, 0));
        const Packets y = packets_at(out, to, quad, out.packet(n, row, 0));
        if (!out.is_float) {
          kernel.lookup(x.channel[0], out.w, codes_.data(), y.channel[0]);
          continue;
        }
        for (int64_t j = 0; j < 4 && y.channel[j]; ++j) {
          float* const floats = reinterpret_cast<float*>(y.channel[j]);
          if (in.is_float)
            map_(kernel, parameters_, reinterpret_cast<const float*>(x.channel[j]), out.w, floats);
          else
            for (int64_t p = 0; p < out.w; ++p) floats[p] = table_[x.channel[0][p * 4 + j]];
        }
      }
  });
  fill_all_halos(out, node.rows, to, halo_value(type_));
}

const RegisterOp<Activation> kActivation("activation", 1);

}  // namespace
}  // namespace tops
