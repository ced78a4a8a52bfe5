// SPDX-License-Identifier: Apache-2.0
#include "ops/precision.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "bind/bind.h"

namespace tops::bind {
namespace {

PrecisionRule rule_of(const py::tuple& rule) {
  return {rule[0].cast<double>(), rule[1].cast<double>(), rule[2].cast<double>(),
          rule[3].cast<int64_t>()};
}

// Every array by its address, as [..., rollouts] float32; 0: none.
void precision_filter(Address y, Address drive, Address a, Address q, Address c, Address r0,
                      Address m, Address p, Address beta, Address means, Address residuals,
                      const py::tuple& sizes, const py::tuple& rule, double alpha, bool learn) {
  const auto real = [](Address at) { return reinterpret_cast<float*>(at); };
  const PrecisionArgs<float> args{sizes[0].cast<int64_t>(),
                                  sizes[1].cast<int64_t>(),
                                  sizes[2].cast<int64_t>(),
                                  sizes[3].cast<int64_t>(),
                                  real(a),
                                  real(q),
                                  real(c),
                                  real(r0),
                                  rule_of(rule),
                                  alpha,
                                  learn,
                                  real(drive),
                                  real(y),
                                  real(m),
                                  real(p),
                                  real(beta),
                                  real(means),
                                  real(residuals)};
  py::gil_scoped_release release;
  tops::precision_filter(args);
}

// y, expected, variance, beta, r0, new beta, weight, residual, flags.
void precision_update(const std::vector<Address>& at, int64_t rollouts, int64_t sensors,
                      const py::tuple& rule, double alpha, float threshold) {
  const auto real = [&](size_t i) { return reinterpret_cast<float*>(at.at(i)); };
  const UpdateArgs args{rollouts, sensors,
                        real(4),  rule_of(rule),
                        alpha,    threshold,
                        real(0),  real(1),
                        real(2),  real(3),
                        real(5),  real(6),
                        real(7),  reinterpret_cast<int32_t*>(at.at(8))};
  py::gil_scoped_release release;
  tops::precision_update(args);
}

Array<float> sensor_noise(uint64_t seed, int64_t rollout, int64_t step, int64_t sensors,
                          int64_t n) {
  Array<float> out(std::vector<py::ssize_t>{sensors, n});
  float* const to = out.mutable_data();
  py::gil_scoped_release release;
  tops::sensor_noise(seed, rollout, step, sensors, n, to);
  return out;
}

// The filter of one system in float64, a call a step. Python checks what it is made of.
class Filter {
 public:
  Filter(const Array<double>& c, const Array<double>& r0, const Array<double>& mean,
         const Array<double>& covariance, const py::tuple& rule, double alpha, double threshold)
      : states_(c.shape(1)),
        sensors_(c.shape(0)),
        c_(c.data(), c.data() + c.size()),
        r0_(r0.data(), r0.data() + r0.size()),
        m_(mean.data(), mean.data() + mean.size()),
        rule_(rule_of(rule)),
        alpha_(alpha),
        threshold_(threshold),
        drive_(static_cast<size_t>(states_)) {
    for (int64_t i = 0; i < states_; ++i)
      for (int64_t j = 0; j <= i; ++j) p_.push_back(covariance.data()[i * states_ + j]);
    for (const double r : r0_) beta_.push_back(alpha_ * r);
  }

  void set_model(const Array<double>& a, const Array<double>& b, const Array<double>& q) {
    a_.assign(a.data(), a.data() + a.size());
    b_.assign(b.data(), b.data() + b.size());
    q_.assign(q.data(), q.data() + q.size());
    inputs_ = b.shape(1);
  }

  // (mean, weights, residual, flags), arrays of their own.
  py::tuple step(const py::object& y, const py::object& u, bool learn) {
    const auto reading = vector_of(y, sensors_, "readings y");
    std::fill(drive_.begin(), drive_.end(), 0.0);
    if (!u.is_none()) {
      const auto input = vector_of(u, inputs_, "inputs u");
      for (int64_t k = 0; k < inputs_; ++k)
        if (!std::isfinite(input.data()[k]))
          bad_argument("expected finite inputs u, got " + std::to_string(input.data()[k]) +
                       ";\n  Pass the command that was really applied.");
      for (int64_t i = 0; i < states_; ++i)
        for (int64_t k = 0; k < inputs_; ++k)
          drive_[static_cast<size_t>(i)] +=
              b_[static_cast<size_t>(i * inputs_ + k)] * input.data()[k];
    }
    Array<double> residual(sensors_), weights(sensors_), mean(states_);
    tops::precision_step({1, 1, states_, sensors_, a_.data(), q_.data(), c_.data(), r0_.data(),
                          rule_, alpha_, learn, drive_.data(), reading.data(), m_.data(), p_.data(),
                          beta_.data(), mean.mutable_data(), residual.mutable_data()});
    if (learn) alpha_ = rule_.rho * alpha_ + 0.5;
    return py::make_tuple(mean, weights_of_beta(weights), residual, flags(reading, residual));
  }

  py::array covariance() const {
    Array<double> out(std::vector<py::ssize_t>{states_, states_});
    for (int64_t i = 0, k = 0; i < states_; ++i)
      for (int64_t j = 0; j <= i; ++j, ++k)
        out.mutable_data()[i * states_ + j] = out.mutable_data()[j * states_ + i] =
            p_[static_cast<size_t>(k)];
    return out;
  }

 private:
  static Array<double> vector_of(const py::object& given, int64_t n, const char* name) {
    auto array = Array<double>::ensure(given);
    if (array && array.ndim() == 1 && array.shape(0) == n) return array;
    PyErr_Clear();
    bad_argument("expected " + std::string(name) + " as " + std::to_string(n) + " numbers, got " +
                 (array ? "an array of " + std::to_string(array.size()) : "something else") +
                 ";\n  A reading that is missing is NaN.");
  }

  py::array weights_of_beta(Array<double>& weights) const {
    for (int64_t i = 0; i < sensors_; ++i) {
      const auto k = static_cast<size_t>(i);
      weights.mutable_data()[i] = std::min(alpha_ / beta_[k], rule_.cap / r0_[k]);
    }
    return std::move(weights);
  }

  // 1: the residual is above the threshold; 2: the reading is missing.
  Array<uint8_t> flags(const Array<double>& y, const Array<double>& residual) const {
    Array<uint8_t> out(sensors_);
    for (int64_t i = 0; i < sensors_; ++i)
      out.mutable_data()[i] = static_cast<uint8_t>((residual.data()[i] > threshold_ ? 1 : 0) |
                                                   (std::fabs(y.data()[i]) < 1e15 ? 0 : 2));
    return out;
  }

  int64_t states_, sensors_, inputs_ = 0;
  std::vector<double> c_, r0_, m_, a_, b_, q_, p_, beta_;
  PrecisionRule rule_;
  double alpha_, threshold_;
  std::vector<double> drive_;
};

}  // namespace

void bind_precision(py::module_& m) {
  m.def("precision_filter", &precision_filter);
  m.def("precision_update", &precision_update);
  m.def("sensor_noise", &sensor_noise);
  py::class_<Filter>(m, "PrecisionFilter")
      .def(py::init<const Array<double>&, const Array<double>&, const Array<double>&,
                    const Array<double>&, const py::tuple&, double, double>())
      .def("set_model", &Filter::set_model)
      .def("step", &Filter::step)
      .def("covariance", &Filter::covariance);
}

}  // namespace tops::bind
