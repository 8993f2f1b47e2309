// SPDX-License-Identifier: Apache-2.0
// The parameters of a layer, and their gradients.
//
//   router.weight           [E × H]   sum type
//   router.bias             [E]       sum type; where the router's logits have a bias
//   router.noise            [E × H]   sum type; where their noise is learned. It starts at 0
//   router.selection_bias   [E]       float; where the router selects by one. It is state: it has no gradient, starts at 0
//   experts.*               element type, see layer/expert_parameters.hpp
//   latent.in, latent.out   [L × H], [H × L]   element type; around experts of a latent width, for which H is L
//   shared.*                the same of shared experts, without the axis E
//   shared_gate.weight      [1 × H]   sum type; where they are gated
//
// Rows are outputs. for_each_parameter(weights, gradients, f) calls f(parameter, span of weights, span of gradients) for
// each that is trained: the door for optimisers, clipping and freezing; for_each_parameter(weights, f) visits states too:
// the door for checkpoints. Both take whatever has for_each(f) as a layer's have, a stack of layers for one. The spans lie in
// memory of the back end. Gradients are sum type throughout and know when they are empty: a first backward overwrites, later
// ones add.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/matrices.hpp>
#include <moiety/experts/weight_layout.hpp>
#include <moiety/layer/parameter_set.hpp>
#include <moiety/layer/spec.hpp>

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace moiety::inline MOIETY_ABI {

template <class Spec, scalar T, weight_layout Layout = row_major>
class layer_weights : public detail::parameter_set<Spec, sum_t<T>, T, true> {
  using base = detail::parameter_set<Spec, sum_t<T>, T, true>;
  using spec = spec_of<Spec>;
  using mlp_type = typename spec::experts_type;
  using shared_mlp = typename spec::shared_mlp;
  static constexpr bool packs = Layout::packs_forward || Layout::packs_backward;

 public:
  layer_weights(base set, std::pmr::memory_resource& memory)
      : base(std::move(set)), copies_(base::sizes(), memory), shared_copies_(base::shared_sizes, memory) {}

  expert_operands<mlp_type, T, Layout> operands() const { return {base::experts(), &copies_}; }
  expert_operands<shared_mlp, T, Layout> shared_operands() const { return {base::shared(), &shared_copies_}; }

  /// Brings the packed copies up to date; nothing to do in the layout row_major.
  template <class Engine> void pack(Engine& engine) {
    base::expect_held();
    copies_.pack(engine, base::experts());
    if constexpr (spec::has_shared) shared_copies_.pack(engine, base::shared());
    changed_ = false;
  }

  /// Throws state_error where packed copies are older than the weights, or these were moved from.
  void expect_packed(char const* call) const {
    base::expect_held();
    detail::require<state_error>(!packs || !changed_, call,
                                 " was given weights that may have changed since layer.pack(weights).");
  }

  /// f(parameter, span of its values), which f may change, or only read.
  template <class F> void for_each(F&& f) {
    changed_ = true;
    base::for_each(std::forward<F>(f));
  }
  template <class F> void for_each(F&& f) const {
    base::for_each([&]<class V>(parameter const& p, std::span<V> values) { f(p, std::span<V const>(values)); });
  }
  template <class F> void for_each_trained(F&& f) {
    changed_ = true;
    base::for_each_trained(std::forward<F>(f));
  }
  template <class F> void for_each_trained(F&& f) const {
    base::for_each_trained([&]<class V>(parameter const& p, std::span<V> values) { f(p, std::span<V const>(values)); });
  }

 private:
  expert_copies<mlp_type, T, Layout> copies_;
  expert_copies<shared_mlp, T, Layout> shared_copies_;
  bool changed_ = true;
};

template <class Spec, scalar T> class layer_gradients : public detail::parameter_set<Spec, sum_t<T>, sum_t<T>, false> {
  using base = detail::parameter_set<Spec, sum_t<T>, sum_t<T>, false>;

 public:
  layer_gradients(base set, arena& memory) : base(std::move(set)), memory_(&memory) {}

  /// The next backward overwrites.
  void reset() { empty_ = true, has_backward_ = false; }
  bool empty() const { return base::expect_held(), empty_; }
  /// Whether a backward added to them since the reset; where none did, zeros may stand there, or what f wrote.
  bool has_backward() const { return base::expect_held(), has_backward_; }
  void filled() { empty_ = false, has_backward_ = true; }

  /// f(parameter, span of gradients); zeros where nothing was added since the reset.
  template <class F> void for_each(F&& f) {
    if (empty_) base::for_each([this](parameter const&, auto values) { this->clear(values); });
    empty_ = false;
    base::for_each(std::forward<F>(f));
  }

 private:
  template <class V> void clear(std::span<V> values) const {
    memory_->zero(values.data(), static_cast<std::int64_t>(values.size_bytes()));
  }

  arena* memory_;
  bool empty_ = true, has_backward_ = false;
};

namespace detail {
/// Gradients of a parameter, of either sum type.
using sum_span = std::variant<std::span<float>, std::span<double>>;

/// States of a layer in double are float, and nothing that f knows: with a for_each_trained of their own, weights spare f these.
template <class Weights, class F> void for_each_trained(Weights& weights, F const& f) {
  if constexpr (requires { weights.for_each_trained(f); })
    weights.for_each_trained(f);
  else
    weights.for_each([&](parameter const& p, auto values) {
      if (p.trained) f(p, values);
    });
}
}  // namespace detail

/// f(parameter, span of weights) for each parameter.
template <class Weights, class F> void for_each_parameter(Weights& weights, F&& f) {
  weights.for_each(std::forward<F>(f));
}

/// f(parameter, span of weights, span of gradients) for each trained parameter.
template <class Weights, class Gradients, class F>
void for_each_parameter(Weights& weights, Gradients& gradients, F&& f) {
  std::vector<std::pair<std::string, detail::sum_span>> sums;
  gradients.for_each([&](parameter const& p, auto values) { sums.emplace_back(p.name, values); });
  auto next = sums.begin();
  detail::for_each_trained(weights, [&]<class V>(parameter const& p, std::span<V> values) {
    detail::require<state_error>(next != sums.end() && next->first == p.name, "the weights have a parameter ", p.name,
                                 " where the gradients have none of it.");
    f(p, values, std::get<std::span<sum_t<std::remove_const_t<V>>>>((next++)->second));
  });
  detail::require<state_error>(next == sums.end(), "the gradients have ", sums.end() - next,
                               " parameters behind the last of the weights.");
}

}  // namespace moiety
