// SPDX-License-Identifier: Apache-2.0
// Two layers that are trained on any layout of thread ranks, and their logical tensors.
#pragma once

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace two_layers {

namespace mo = moiety;

struct block : mo::layer_spec<mo::dims{.hidden = 20, .ffn = 12, .experts = 8}> {
  using router = mo::router<mo::sigmoid, mo::selection_bias, mo::top_k<2>, mo::renormalised>;
  using experts = mo::gated_mlp<mo::silu>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
  using shared = mo::shared_experts<1, mo::sigmoid_gated>;
};

template <class T> struct spread : mo::deployment<mo::dynamic> { using element = T; };

constexpr std::int64_t tokens = 61;

/// The tokens of a rank: uneven, one of four ranks has none.
inline mo::range_of tokens_of(int rank, int ranks) {
  if (ranks != 4) return mo::slice_of(tokens, rank, ranks);
  constexpr std::int64_t first[]{0, 25, 25, 45, tokens};
  return {first[rank], first[rank + 1] - first[rank]};
}

template <class V> using tensors = std::map<std::string, std::vector<V>>;

inline std::size_t values_of(std::vector<std::int64_t> const& shape) {
  return static_cast<std::size_t>(
      std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<std::int64_t>()));
}

/// What a step had.
struct step_result {
  bool taken = false;
  double norm = 0, factor = 0, balance = 0;
};

template <class T> class net {
  using S = mo::sum_t<T>;
  using deployment = spread<T>;
  using layer = mo::moe_layer<block, deployment>;

 public:
  explicit net(mo::context<deployment>& context, std::uint64_t seed = 1)
      : ctx(context), mine_(tokens_of(ctx.stage().rank(), ctx.stage().size())) {
    for (auto* const m : {&x_, &h_, &y_, &dy_, &dh_, &dx_}) *m = ctx.matrix(mine_.count, 20);
    layer_.initialise(first, mo::seed{seed});
    layer_.initialise(second, mo::seed{seed + 100});
  }

  /// The trained tensors, for optimisers.
  auto parameters() {
    return [this](auto const& f) {
      mo::parameters_of(first, first_gradients, "layers.0.")(f);
      mo::parameters_of(second, second_gradients, "layers.1.")(f);
    };
  }
  auto list() { return mo::gradients_of<S>(parameters()); }
  /// f(name, parameter, values) of the weights and states of both layers.
  template <class F> void for_each_weight(F const& f) {
    mo::for_each_parameter(std::as_const(first), [&](auto const& p, auto v) { f("layers.0." + p.name, p, v); });
    mo::for_each_parameter(std::as_const(second), [&](auto const& p, auto v) { f("layers.1." + p.name, p, v); });
  }
  template <class F> void for_each_gradient(F const& f) {
    first_gradients.for_each([&](auto const& p, auto v) { f("layers.0." + p.name, p, v); });
    second_gradients.for_each([&](auto const& p, auto v) { f("layers.1." + p.name, p, v); });
  }

  /// Gradients of ½ Σ (y − target)² of this rank's tokens, and of the losses; the balance loss.
  double backward(int step) {
    mo::batch const about{.first_row = mine_.first, .step = step};
    auto const drawn = static_cast<std::uint64_t>(step);
    mo::fill_normal(ctx, x_, mo::seed{1000 + drawn}, mo::first_row{mine_.first});
    mo::fill_normal(ctx, dy_, mo::seed{2000 + drawn}, mo::first_row{mine_.first});
    first_gradients.reset(), second_gradients.reset();
    auto lower = layer_.forward(first, x_, h_, about);
    auto upper = layer_.forward(second, h_, y_, about);
    for (std::int64_t i = 0; i < mine_.count; ++i)
      for (std::int64_t j = 0; j < 20; ++j)
        dy_(i, j) = static_cast<T>(static_cast<S>(y_(i, j)) - static_cast<S>(dy_(i, j)));
    layer_.backward(second, upper, dy_, dh_, second_gradients);
    layer_.backward(first, lower, dh_, dx_, first_gradients);
    auto const report = layer_.report(upper);
    layer_.update_selection_bias(second, report.counts());
    return report.template value<mo::load_balance<>>();
  }

  /// A step of training, with a clipped norm; spoil(net) between backward and the sums over ranks.
  template <class Optimiser, class Spoil>
  step_result step(Optimiser& optimiser, int number, double max_norm, mo::summed where, Spoil const& spoil) {
    step_result all;
    all.balance = backward(number);
    spoil(*this);
    auto const groups = mo::groups_of(ctx);
    auto const gradients = list();
    mo::reduce_gradients(gradients, groups, {.where = where, .bucket_bytes = 4096});
    mo::normalise(gradients, mo::total_weight(ctx.world(), static_cast<double>(mine_.count)));
    all.norm = mo::global_norm(gradients, groups);
    all.factor = mo::clip_gradients(gradients, max_norm, all.norm);
    all.taken = optimiser.step(parameters(), 1e-2, all.norm);
    return all;
  }
  template <class Optimiser> step_result step(Optimiser& optimiser, int number, double max_norm = 0.05) {
    return step(optimiser, number, max_norm, mo::summed::slices, [](net&) {});
  }

  mo::range_of tokens_here() const { return mine_; }

  mo::context<deployment>& ctx;

 private:
  mo::range_of mine_;
  layer layer_{ctx,
               {.router = {mo::selection_bias{.rate = 0.01f}},
                .losses = {mo::load_balance<>{.coefficient = 0.02f}, mo::router_z{.coefficient = 0.01f}}}};
  decltype(ctx.matrix(0, 0)) x_, h_, y_, dy_, dh_, dx_;

 public:
  typename layer::weights_type first = layer_.make_weights(mo::seed{1}), second = layer_.make_weights(mo::seed{1});
  typename layer::gradients_type first_gradients = layer_.make_gradients(), second_gradients = layer_.make_gradients();
};

/// The logical tensors of for_each(f) with f(name, parameter, values of this rank); a collective. Zeros lose their sign.
template <class V, class Context, class ForEach> tensors<V> whole(Context& ctx, ForEach const& for_each) {
  tensors<V> all;
  for_each([&](std::string const& name, mo::parameter const& p, auto values) {
    std::vector<V> tensor(values_of(p.shape));
    auto from = values.begin();
    p.for_each_piece([&](std::int64_t begin, std::int64_t count) {
      std::transform(from, from + count, tensor.begin() + begin, [](auto v) { return static_cast<V>(v); });
      from += count;
    });
    if (p.of_experts) ctx.expert_group().all_reduce(std::span<V>(tensor));
    all[name] = std::move(tensor);
  });
  return all;
}

template <class V> bool same_bits(std::vector<V> const& a, std::vector<V> const& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(V)) == 0);
}

/// ‖a − b‖ / ‖b‖ of all tensors together.
inline double distance(tensors<double> const& a, tensors<double> const& b) {
  REQUIRE(a.size() == b.size());
  double error = 0, norm = 0;
  for (auto const& [name, values] : b) {
    auto const& others = a.at(name);
    REQUIRE(others.size() == values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      error += (others[i] - values[i]) * (others[i] - values[i]);
      norm += values[i] * values[i];
    }
  }
  return std::sqrt(error / norm);
}

/// f(context) on every rank; what rank 0 returned.
template <class T, class F> auto on(mo::layout const& shape, F const& f) {
  return mo::run<spread<T>>(f, {.deadline = std::chrono::seconds(60)}, shape);
}

}  // namespace two_layers
