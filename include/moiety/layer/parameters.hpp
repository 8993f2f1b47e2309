// SPDX-License-Identifier: Apache-2.0
// The parameters of a layer, and their gradients.
//
//   router.*                sum type, see layer/router_parameters.hpp
//   router.selection_bias   [E]       float; where the router selects by one. It is state: it has no gradient, starts at 0
//   experts.*               element type, see layer/expert_parameters.hpp
//
// Rows are outputs. for_each_parameter(weights, gradients, f) calls f(parameter, span of weights, span of gradients) for
// each that is trained: the door for optimisers, clipping and freezing; for_each_parameter(weights, f) visits states too:
// the door for checkpoints. The spans lie in memory of the back end. Gradients are sum type throughout and know when they
// are empty: a first backward overwrites, later ones add.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/matrices.hpp>
#include <moiety/experts/weight_layout.hpp>
#include <moiety/layer/expert_parameters.hpp>
#include <moiety/layer/router_parameters.hpp>
#include <moiety/layer/spec.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory_resource>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace moiety::inline MOIETY_ABI {

struct parameter {
  std::string name;                   // unique in its layer
  std::vector<std::int64_t> shape;    // of the whole logical tensor
  std::int64_t first = 0, count = 0;  // this rank's slice of the first axis
  std::int64_t fan_in = 0;            // inputs of one output; 0 for what starts at 0: biases, noise, states
  std::string_view type;              // "float", "bf16", …
  bool trained = true;                // has a gradient; a state has none

  /// This rank's elements.
  std::size_t size() const {
    return static_cast<std::size_t>(
        std::accumulate(shape.begin() + 1, shape.end(), count, std::multiplies<std::int64_t>()));
  }
};

namespace detail {

template <class Router> inline constexpr bool has_selection_bias = false;
template <class Router>
requires requires { requires Router::has_selection_bias; }
inline constexpr bool has_selection_bias<Router> = true;

/// Memory of every parameter of a layer: router values of type RouterType, expert values of type ExpertType.
template <class Spec, class RouterType, class ExpertType, bool WithStates> class parameter_set {
  using spec = spec_of<Spec>;
  using router_type = typename spec::router_type;
  using router_tensors = router_parameters<router_type, RouterType>;
  using experts_type = expert_parameters<typename spec::experts_type, ExpertType>;

 public:
  static constexpr expert_sizes sizes{spec::experts, spec::hidden, spec::ffn};

  matrix_view<RouterType> router() const { return {router_.weight(), spec::experts, spec::hidden}; }
  /// [E], or null where the router has none.
  RouterType* router_bias() const { return router_.bias(); }
  matrix_view<RouterType> router_noise() const { return {router_.noise(), spec::experts, spec::hidden}; }
  float* selection_bias() const { return selection_bias_; }

  expert_matrices<typename spec::experts_type, ExpertType> experts() const { return experts_.matrices(sizes); }

  /// f(parameter, span of its values) for each parameter.
  template <class F> void for_each(F&& f) const {
    visit(*this, [&](auto* values, parameter const& p) { f(p, std::span(values, p.size())); });
  }

  /// The same without states.
  template <class F> void for_each_trained(F&& f) const {
    visit_trained(*this, [&](auto* values, parameter const& p) { f(p, std::span(values, p.size())); });
  }

  /// Memory of its own, not initialised.
  static parameter_set allocate(std::pmr::memory_resource& memory) {
    parameter_set result;
    visit(result, [&]<class T>(T*& pointer, parameter const& p) {
      result.owned_.emplace_back(static_cast<std::int64_t>(p.size() * sizeof(T)), memory);
      pointer = static_cast<T*>(result.owned_.back().data());
    });
    return result;
  }

  /// Memory of the caller: bind(parameter) gives a pointer to size() values, typed or void*.
  template <class Bind> static parameter_set bound(Bind&& bind) {
    parameter_set result;
    visit(result, [&]<class T>(T*& pointer, parameter const& p) {
      auto* const given = bind(p);
      using Given = std::remove_pointer_t<decltype(given)>;
      require<config_error>(std::is_void_v<Given> || std::is_same_v<Given, T>, "parameter ", p.name, " holds ", p.type,
                            ", but was bound to memory of another type.");
      require<data_error>(given != nullptr, "parameter ", p.name, " was bound to null.");
      require<data_error>(is_aligned<T>(given), "bind_weights was given memory for parameter ", p.name,
                          " at an address that is no multiple of ", alignof(T), " bytes.");
      pointer = static_cast<T*>(static_cast<void*>(given));
    });
    return result;
  }

 private:
  /// f(pointer, parameter) for each.
  template <class Self, class F> static void visit(Self& self, F const& f) {
    visit_trained(self, f);
    if constexpr (WithStates && has_selection_bias<router_type>)
      f(self.selection_bias_,
        parameter{"router.selection_bias", {spec::experts}, 0, spec::experts, 0, name_of<float>, false});
  }

  template <class Self, class F> static void visit_trained(Self& self, F const& f) {
    auto const named = [&f](auto& pointer, std::string name, std::vector<std::int64_t> shape, std::int64_t fan_in) {
      std::string_view const type = name_of<std::remove_pointer_t<std::remove_cvref_t<decltype(pointer)>>>;
      std::int64_t const count = shape[0];
      f(pointer, parameter{std::move(name), std::move(shape), 0, count, fan_in, type});
    };
    router_tensors::visit(self.router_, spec::experts, spec::hidden, named);
    experts_type::visit(self.experts_, "experts", sizes, named);
  }

  router_tensors router_;
  float* selection_bias_ = nullptr;
  experts_type experts_;
  std::vector<buffer> owned_;
};

}  // namespace detail

template <class Spec, scalar T, weight_layout Layout = row_major>
class layer_weights : public detail::parameter_set<Spec, sum_t<T>, T, true> {
  using base = detail::parameter_set<Spec, sum_t<T>, T, true>;
  using mlp_type = typename spec_of<Spec>::experts_type;
  static constexpr bool packs = Layout::packs_forward || Layout::packs_backward;

 public:
  layer_weights(base set, std::pmr::memory_resource& memory) : base(std::move(set)), copies_(base::sizes, memory) {}

  expert_operands<mlp_type, T, Layout> operands() const { return {base::experts(), &copies_}; }

  /// Brings the packed copies up to date; nothing to do in the layout row_major.
  template <class Engine> void pack(Engine& engine) {
    copies_.pack(engine, base::experts());
    changed_ = false;
  }

  /// Throws state_error where packed copies are older than the weights.
  void expect_packed(char const* call) const {
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
  bool changed_ = true;
};

template <class Spec, scalar T> class layer_gradients : public detail::parameter_set<Spec, sum_t<T>, sum_t<T>, false> {
  using base = detail::parameter_set<Spec, sum_t<T>, sum_t<T>, false>;

 public:
  layer_gradients(base set, arena& memory) : base(std::move(set)), memory_(&memory) {}

  /// The next backward overwrites.
  void reset() { empty_ = true; }
  bool empty() const { return empty_; }
  void filled() { empty_ = false; }

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
  bool empty_ = true;
};

/// f(parameter, span of weights) for each parameter.
template <class Spec, scalar T, class Layout, class F>
void for_each_parameter(layer_weights<Spec, T, Layout>& weights, F&& f) {
  weights.for_each(std::forward<F>(f));
}
template <class Spec, scalar T, class Layout, class F>
void for_each_parameter(layer_weights<Spec, T, Layout> const& weights, F&& f) {
  weights.for_each(std::forward<F>(f));
}

namespace detail {
template <class Weights, class Gradients, class F> void for_each_pair(Weights& weights, Gradients& gradients, F&& f) {
  weights.for_each_trained([&](parameter const& p, auto values) {
    gradients.for_each([&](parameter const& q, auto sums) {
      if (q.name == p.name) f(p, values, sums);
    });
  });
}
}  // namespace detail

/// f(parameter, span of weights, span of gradients) for each trained parameter.
template <class Spec, scalar T, class Layout, class F>
void for_each_parameter(layer_weights<Spec, T, Layout>& weights, layer_gradients<Spec, T>& gradients, F&& f) {
  detail::for_each_pair(weights, gradients, f);
}
template <class Spec, scalar T, class Layout, class F>
void for_each_parameter(layer_weights<Spec, T, Layout> const& weights, layer_gradients<Spec, T>& gradients, F&& f) {
  detail::for_each_pair(weights, gradients, f);
}

}  // namespace moiety
