// SPDX-License-Identifier: Apache-2.0
// Checks that a composition of policies, a user's own included, is a layer that trains.
//
//   mo::testing::conforms<Spec>()     true if every check holds; otherwise says on std::cerr which did not
//
// It checks every gradient by differences (check_gradients), runs forward and backward twice, and on one and two threads,
// for the same bits, and calls with no token and with one. Its batches bring no ids and no experts: of a selection that needs
// them, as mo::hash and mo::precomputed, it throws data_error. Give check_gradients a batch that has them.
//
//   mo::testing::check_gradients<Spec>(tokens)     the error of the gradient of x and of each parameter, in double:
//
//   L(θ) = Σ ⟨dy, y⟩ + weight · Σ_losses coefficient · value
//   error = |(L(θ + hv) − L(θ − hv)) / 2h − ⟨∇L, v⟩| / (‖∇L‖ ‖v‖) along a random direction v
//
// The routing must not change between the three points; a direction that changes it is drawn again.
#pragma once

#include <moiety/moiety.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moiety::inline MOIETY_ABI::testing {

/// The largest error that passes.
inline constexpr double gradient_tolerance = 1e-6;

struct gradient_check {
  std::string name;  // "x", or the name of a parameter
  double error;
};

/// Options in which every listed loss is trained, each with a coefficient of its own.
template <class Spec> layer_options<Spec> trained_options() {
  layer_options<Spec> options;
  float coefficient = 0.3f;
  options.losses.for_each([&]<class Loss>(Loss const&) {
    options.losses.template get<Loss>().coefficient = coefficient;
    coefficient /= 2;
  });
  return options;
}

namespace detail {

template <class Spec> class difference_problem {
  struct in_double : deployment<> {
    using element = double;
  };
  using layer_type = moe_layer<Spec, in_double>;

 public:
  difference_problem(std::int64_t count, batch const& about, layer_options<Spec> const& options, seed key)
      : layer_(ctx_, options),
        weights_(layer_.make_weights(key)),
        gradients_(layer_.make_gradients()),
        x_(count, spec_of<Spec>::hidden),
        y_(x_.rows(), x_.cols()),
        dy_(x_.rows(), x_.cols()),
        dx_(x_.rows(), x_.cols()),
        about_(about) {
    if (about.counts == nullptr) about_.counts = &no_counts_;
    fill_normal(ctx_, x_, seed{key.value + 1});
    fill_normal(ctx_, dy_, seed{key.value + 2});
    draw_biases(key);
  }

  std::vector<gradient_check> run() {
    auto tape = layer_.forward(weights_, x_, y_, about_);
    ids_ = ids_of(tape);
    layer_.backward(weights_, tape, dy_, dx_, gradients_);
    std::vector<gradient_check> checks{{"x", error({x_.data(), x_.size()}, {dx_.data(), dx_.size()})}};
    for_each_parameter(weights_, gradients_, [&](parameter const& p, std::span<double> values, std::span<double> sums) {
      checks.push_back({p.name, error(values, sums)});
    });
    return checks;
  }

 private:
  using tape_type = typename layer_type::tape_type;

  /// Biases start at 0, where some mistakes do not show.
  void draw_biases(seed key) {
    weights_.for_each([&](parameter const& p, auto values) {
      if (p.fan_in != 0 || !p.trained) return;
      using S = typename decltype(values)::value_type;
      for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<S>(0.5 * normal(key, stream_of(p.name), i));
    });
    layer_.pack(weights_);
  }

  /// The experts of each token, whatever their order.
  static std::vector<std::int32_t> ids_of(tape_type const& tape) {
    auto const& r = tape.routing();
    std::vector<std::int32_t> ids(r.ids, r.ids + r.tokens * r.slots);
    for (auto token = ids.begin(); token != ids.end(); token += r.slots) std::sort(token, token + r.slots);
    return ids;
  }

  /// L, or NaN where the routing changed.
  double objective() {
    auto const tape = layer_.forward(weights_, x_, y_, about_);
    if (ids_of(tape) != ids_) return std::numeric_limits<double>::quiet_NaN();
    double sum = 0;
    for (std::size_t i = 0; i < y_.size(); ++i) sum += dy_.data()[i] * y_.data()[i];
    return sum + tape.batch_weight() * layer_.report(tape).total();
  }

  double error(std::span<double> values, std::span<double const> gradient) {
    constexpr double h = 1e-5;
    std::vector<double> const start(values.begin(), values.end());
    for (int attempt = 0; attempt < 8; ++attempt) {
      double inner = 0, gradient_square = 0, direction_square = 0;
      std::vector<double> direction(values.size());
      for (std::size_t i = 0; i < direction.size(); ++i) {
        direction[i] = normal(seed{77 + attempt}, 0, i);
        inner += direction[i] * gradient[i];
        gradient_square += gradient[i] * gradient[i];
        direction_square += direction[i] * direction[i];
      }
      auto const at = [&](double step) {
        for (std::size_t i = 0; i < direction.size(); ++i)
          values[i] = start[i] + step * direction[i] / std::sqrt(direction_square / static_cast<double>(values.size()));
        return objective();
      };
      double const slope =
          (at(h) - at(-h)) / (2 * h) * std::sqrt(direction_square / static_cast<double>(values.size()));
      std::copy(start.begin(), start.end(), values.begin());
      double const norm = std::sqrt(gradient_square) * std::sqrt(direction_square);
      if (values.empty()) return 0;
      if (std::isfinite(slope)) return norm > 0 ? std::abs(slope - inner) / norm : std::abs(slope);
    }
    return std::numeric_limits<double>::infinity();
  }

  context<in_double> ctx_;
  layer_type layer_;
  typename layer_type::weights_type weights_;
  typename layer_type::gradients_type gradients_;
  matrix<double> x_, y_, dy_, dx_;
  step_counts no_counts_{spec_of<Spec>::experts};  // losses then take those of the batch, as values do
  batch about_;
  std::vector<std::int32_t> ids_;
};

}  // namespace detail

/// The error of the gradient of x and of each parameter, for a call of `count` tokens.
template <class Spec>
std::vector<gradient_check> check_gradients(std::int64_t count, batch const& about = {},
                                            layer_options<Spec> const& options = trained_options<Spec>(),
                                            seed key = seed{1}) {
  return detail::difference_problem<Spec>(count, about, options, key).run();
}

namespace detail {

/// y, dx and every gradient of one step, one after another.
template <class Spec, class Deployment>
std::vector<sum_t<moiety::detail::element_t<Deployment>>> step(std::int64_t count, int threads) {
  context<Deployment> ctx{host{.threads = threads}};
  moe_layer<Spec, Deployment> layer{ctx, trained_options<Spec>()};
  auto const hidden = spec_of<Spec>::hidden;
  auto const weights = layer.make_weights(seed{1});
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(count, hidden), y = ctx.matrix(count, hidden), dy = ctx.matrix(count, hidden),
       dx = ctx.matrix(count, hidden);
  fill_normal(ctx, x, seed{2});
  fill_normal(ctx, dy, seed{3});
  step_counts const no_counts(spec_of<Spec>::experts);
  auto tape = layer.forward(weights, x, y, {.counts = &no_counts});
  layer.backward(weights, tape, dy, dx, gradients);
  std::vector<sum_t<moiety::detail::element_t<Deployment>>> all(y.begin(), y.end());
  all.insert(all.end(), dx.begin(), dx.end());
  gradients.for_each([&](parameter const&, auto values) { all.insert(all.end(), values.begin(), values.end()); });
  return all;
}

template <class Value> bool same_bits(std::vector<Value> const& a, std::vector<Value> const& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(Value)) == 0);
}

inline bool says(bool holds, std::string_view what) {
  if (!holds) std::cerr << "does not conform: " << what << '\n';
  return holds;
}

}  // namespace detail

template <class Spec> bool conforms() {
  bool good = true;
  for (gradient_check const& check : check_gradients<Spec>(37))
    good &= detail::says(check.error <= gradient_tolerance, "the gradient of " + check.name + " is off by " +
                                                                std::to_string(check.error) + " of its norm");
  for (std::int64_t const count : {std::int64_t{0}, std::int64_t{1}, std::int64_t{67}}) {
    auto const once = detail::step<Spec, deployment<>>(count, 1);
    good &= detail::says(detail::same_bits(once, detail::step<Spec, deployment<>>(count, 1)), "two runs differ");
    good &=
        detail::says(detail::same_bits(once, detail::step<Spec, deployment<>>(count, 2)), "one and two threads differ");
    bool finite = true;
    for (float const v : once) finite = finite && is_finite(v);
    good &= detail::says(finite, "finite input gave values that are not finite");
  }
  return good;
}

}  // namespace moiety::inline MOIETY_ABI::testing
