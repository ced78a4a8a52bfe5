// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "base/threads.h"
#include "bind/bind.h"
#include "program/program.h"

namespace tops::bind {
namespace {

using MaybeVector = std::optional<Array<float>>;

// Checks that the arrays have the sizes that the shape says; their memory is read only during the
// call.
ConvWeights layer_weights(const std::string& kind, const py::array& w, const WeightShape& shape,
                          const Array<float>& scale, const MaybeVector& bias,
                          const MaybeVector& slope, int sparse) {
  const Weights weights = weights_of(kind);
  check_shape(shape, weights);
  const int64_t taps = shape.o * shape.r * shape.s, quads = (shape.i + 3) / 4;
  const char want = weights == Weights::kTernary ? 'B' : weights == Weights::kInt8 ? 'b' : 'f';
  const int64_t size = taps * (weights == Weights::kTernary ? quads
                               : weights == Weights::kInt8  ? 4 * quads
                                                            : shape.i);
  if (w.dtype().char_() != want || w.size() != size || !(w.flags() & py::array::c_style))
    bad_argument(kind + " weights need " + std::to_string(size) + " contiguous elements of type '" +
                 want + "', got " + std::to_string(w.size()) + " of '" + w.dtype().char_() + "'.");
  if (scale.size() != shape.o || (bias && bias->size() != shape.o) ||
      (slope && slope->size() != shape.o))
    bad_argument("scale, bias and slope need " + std::to_string(shape.o) + " values each.");
  return {weights,
          w.data(),
          shape,
          scale.data(),
          bias ? bias->data() : nullptr,
          slope ? slope->data() : nullptr,
          sparse};
}

Array<float> input_array(const Engine& e, const py::array& x, int64_t dims[4]) {
  const Node& in = e.nodes().at(0);
  const py::ssize_t rank = in.rank2 ? 2 : 4;
  if (x.ndim() != rank || x.shape(1) != in.channels)
    bad_argument("the program needs an input of rank " + std::to_string(rank) + " with " +
                 std::to_string(in.channels) + " channels, got rank " + std::to_string(x.ndim()) +
                 (x.ndim() > 1 ? " with " + std::to_string(x.shape(1)) : "") + ".");
  for (py::ssize_t i = 0; i < 4; ++i) dims[i] = i < x.ndim() ? x.shape(i) : 1;
  return Array<float>::ensure(x);
}

// One value of a plan as a plain array: NCHW, or NC for rank 2.
py::array value_array(const Node& node, const ActivationTensor& g, const uint8_t* data) {
  std::vector<py::ssize_t> shape = {g.n, g.channels};
  if (!node.rank2) shape.insert(shape.end(), {g.h, g.w});
  py::array out = node.is_float ? py::array(Array<float>(shape)) : py::array(Array<uint8_t>(shape));
  tensor_to_nchw(g, {0, g.h}, data, out.mutable_data());
  return out;
}

struct ArenaLease {
  explicit ArenaLease(std::shared_ptr<const MemoryPlan> p)
      : plan(std::move(p)), arena(plan->take_arena()) {}
  ~ArenaLease() { plan->give_arena(std::move(arena)); }
  std::shared_ptr<const MemoryPlan> plan;
  Buffer arena;
};

py::array run(Engine& e, const py::array& x) {
  int64_t d[4];
  const Array<float> in = input_array(e, x, d);
  const int id = e.output_node();
  const ActivationTensor out = e.plan(std::min<int64_t>(d[0], 1), d[2], d[3])->grid(id);
  std::vector<py::ssize_t> shape = {d[0], out.channels};
  if (!e.nodes()[static_cast<size_t>(id)].rank2) shape.insert(shape.end(), {out.h, out.w});
  Array<float> y(shape);
  {
    py::gil_scoped_release release;
    e.run(in.data(), d[0], d[2], d[3], y.mutable_data());
  }
  return y;
}

py::list run_all(Engine& e, const py::array& x) {
  int64_t d[4];
  const Array<float> in = input_array(e, x, d);
  ArenaLease lease(e.plan(d[0], d[2], d[3], true));
  {
    py::gil_scoped_release release;
    lease.plan->run(in.data(), nullptr, lease.arena);
  }
  py::list out;
  for (size_t i = 0; i < e.nodes().size(); ++i)
    out.append(value_array(e.nodes()[i], lease.plan->grid(static_cast<int>(i)),
                           lease.plan->value(static_cast<int>(i), lease.arena)));
  return out;
}

py::list profile(Engine& e, const py::array& x, int repeats) {
  int64_t d[4];
  const Array<float> in = input_array(e, x, d);
  ArenaLease lease(e.plan(d[0], d[2], d[3]));
  std::vector<std::vector<NodeProfile>> runs(static_cast<size_t>(std::max(1, repeats)));
  {
    py::gil_scoped_release release;
    for (auto& r : runs) lease.plan->run(in.data(), nullptr, lease.arena, &r);
  }
  py::list out;
  for (size_t i = 0; i < e.nodes().size(); ++i) {
    std::vector<double> ms;
    for (const auto& r : runs) ms.push_back(r[i].ms);
    std::nth_element(ms.begin(), ms.begin() + static_cast<std::ptrdiff_t>(ms.size() / 2), ms.end());
    py::dict row;
    row["node"] = i;
    row["op"] = runs[0][i].op;
    row["ms"] = ms[ms.size() / 2];
    row["macs"] = runs[0][i].macs;
    row["density"] = runs[0][i].density;
    out.append(row);
  }
  return out;
}

// How an image of this size goes through the network: rows of the output in a band (0: the image as
// a whole), tasks (value, first row, end, rows let go before, rows kept then), and of each value
// its memory (-1: the caller's own), its rows, its padding rows above and below, and how many rows
// its memory holds.
py::dict schedule(Engine& e, int64_t h, int64_t w) {
  const std::shared_ptr<const MemoryPlan> plan = e.plan(1, h, w);
  py::list tasks, values;
  for (const RowTask& t : plan->tasks())
    tasks.append(py::make_tuple(t.id, t.rows.begin, t.rows.end, t.drop, t.keep));
  for (size_t i = 0; i < e.nodes().size(); ++i) {
    const int id = static_cast<int>(i);
    const ActivationTensor& g = plan->grid(id);
    values.append(py::make_tuple(plan->memory(id), g.h, g.margin, plan->rows(id)));
  }
  py::dict out;
  out["band"] = plan->band();
  out["tasks"] = tasks;
  out["values"] = values;
  return out;
}

Window window(const Pair& stride, const Pair& padding, const Pair& dilation) {
  return {stride.first,   stride.second,  padding.first,
          padding.second, dilation.first, dilation.second};
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<Engine>(m, "Engine")
      .def(py::init<>())
      .def("input", &Engine::input, py::arg("channels"), py::arg("rank"))
      .def("quantize", &Engine::quantize, py::arg("x"), py::arg("scale"), py::arg("zero_point"),
           py::arg("fine") = false)
      .def("dequantize", &Engine::dequantize, py::arg("x"))
      .def("conv2d",
           [](Engine& e, int x, int residual, int gate, const std::string& kind, const py::array& w,
              int64_t o, int64_t r, int64_t s, int64_t i, const Array<float>& scale,
              const MaybeVector& bias, const MaybeVector& slope, const Pair& stride,
              const Pair& padding, const Pair& dilation, int64_t groups, float lo, float hi,
              float y_scale, int y_zp, int sparse) {
             return e.conv2d(
                 x, residual, gate,
                 layer_weights(kind, w, {o, r, s, i, groups}, scale, bias, slope, sparse),
                 window(stride, padding, dilation), {lo, hi, y_scale, y_zp});
           })
      .def("linear",
           [](Engine& e, int x, int residual, const std::string& kind, const py::array& w,
              int64_t n, int64_t k, const Array<float>& scale, const MaybeVector& bias, float lo,
              float hi, float y_scale, int y_zp, int sparse) {
             return e.linear(x, residual,
                             layer_weights(kind, w, {n, 1, 1, k, 1}, scale, bias, {}, sparse),
                             {lo, hi, y_scale, y_zp});
           })
      .def("max_pool2d",
           [](Engine& e, int x, const Pair& kernel, const Pair& stride, const Pair& padding,
              const Pair& dilation, bool ceil) {
             return e.max_pool2d(x, kernel.first, kernel.second, window(stride, padding, dilation),
                                 ceil);
           })
      .def("avg_pool2d",
           [](Engine& e, int x, const Pair& kernel, const Pair& stride, const Pair& padding,
              bool ceil, bool include_pad, int64_t divisor, float y_scale, int y_zp) {
             constexpr float inf = std::numeric_limits<float>::infinity();
             return e.avg_pool2d(x, kernel.first, kernel.second, window(stride, padding, {1, 1}),
                                 ceil, include_pad, divisor, {-inf, inf, y_scale, y_zp});
           })
      .def("adaptive_avg_pool2d",
           [](Engine& e, int x, int64_t oh, int64_t ow, float y_scale, int y_zp) {
             constexpr float inf = std::numeric_limits<float>::infinity();
             return e.adaptive_avg_pool2d(x, oh, ow, {-inf, inf, y_scale, y_zp});
           })
      .def("add",
           [](Engine& e, int a, int b, float lo, float hi, float y_scale, int y_zp) {
             if (b < 0) bad_argument("add needs two values.");
             return e.add(a, b, {lo, hi, y_scale, y_zp});
           })
      .def("clamp", [](Engine& e, int x, float lo, float hi, float y_scale,
                       int y_zp) { return e.add(x, -1, {lo, hi, y_scale, y_zp}); })
      .def("flatten", &Engine::flatten)
      .def("activation", &Engine::activation)
      .def("mul", &Engine::mul)
      .def("concat", &Engine::concat)
      .def("slice", &Engine::slice)
      .def("pixel_shuffle", &Engine::pixel_shuffle)
      .def("pixel_unshuffle", &Engine::pixel_unshuffle)
      .def("channel_shuffle", &Engine::channel_shuffle)
      .def("resize", &Engine::resize)
      .def("unflatten", &Engine::unflatten)
      .def("softmax", &Engine::softmax)
      .def("layer_norm", &Engine::layer_norm)
      .def("output", &Engine::output)
      .def("run", &run)
      .def("run_all", &run_all)
      .def("profile", &profile, py::arg("x"), py::arg("repeats") = 20)
      .def("peak_bytes", &Engine::peak_bytes)
      .def(
          "debug", [](Engine& e, int64_t band, bool poison) { e.debug({band, poison}); },
          py::arg("band") = 0, py::arg("poison") = false)
      .def("schedule", &schedule)
      .def("band", [](Engine& e, int64_t h, int64_t w) { return e.plan(1, h, w)->band(); });
}

}  // namespace tops::bind
