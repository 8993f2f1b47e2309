// SPDX-License-Identifier: Apache-2.0
// The parameters of a layer, and their gradients.
//
//   router.weight    [E × H]       sum type
//   experts.gate     [E × I × H]   element type; gated MLPs only
//   experts.up       [E × I × H]   element type
//   experts.down     [E × H × I]   element type
//
// Rows are outputs. for_each_parameter(weights, gradients, f) calls f(parameter, span of weights, span of gradients) for
// each: the door for optimisers, clipping, freezing and checkpoints. The spans lie in memory of the back end. Gradients are sum type throughout and know when
// they are empty: a first backward overwrites, later ones add.
#pragma once

#include <moiety/backend/arena.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/matrices.hpp>
#include <moiety/experts/weight_layout.hpp>
#include <moiety/layer/spec.hpp>

#include <array>
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
  std::int64_t fan_in = 0;            // inputs of one output
  std::string_view type;              // "float", "bf16", …

  /// This rank's elements.
  std::size_t size() const {
    return static_cast<std::size_t>(
        std::accumulate(shape.begin() + 1, shape.end(), count, std::multiplies<std::int64_t>()));
  }
};

namespace detail {

/// Memory of every parameter of a layer: router values of type RouterType, expert values of type ExpertType.
template <class Spec, class RouterType, class ExpertType> class parameter_set {
  using spec = spec_of<Spec>;
  using mlp_type = typename spec::experts_type;
  static constexpr auto inputs = static_cast<std::size_t>(spec::inputs);

 public:
  static constexpr std::size_t count = inputs + 2;
  static constexpr std::int64_t router_size = spec::experts * spec::hidden;
  static constexpr std::int64_t matrix_size = spec::experts * spec::ffn * spec::hidden;

  static parameter describe(std::size_t index) {
    std::string_view const router_type = name_of<RouterType>, expert_type = name_of<ExpertType>;
    if (index == 0)
      return {"router.weight", {spec::experts, spec::hidden}, 0, spec::experts, spec::hidden, router_type};
    if (index <= inputs)
      return {"experts." + std::string(mlp_type::input_names[index - 1]),
              {spec::experts, spec::ffn, spec::hidden},
              0,
              spec::experts,
              spec::hidden,
              expert_type};
    return {"experts.down", {spec::experts, spec::hidden, spec::ffn}, 0, spec::experts, spec::ffn, expert_type};
  }

  matrix_view<RouterType> router() const { return {router_, spec::experts, spec::hidden}; }

  expert_matrices<mlp_type, ExpertType> experts() const {
    expert_matrices<mlp_type, ExpertType> result;
    for (std::size_t i = 0; i < inputs; ++i) result.inputs[i] = {experts_[i], spec::ffn * spec::hidden, spec::hidden};
    result.down = {experts_[inputs], spec::ffn * spec::hidden, spec::ffn};
    return result;
  }

  /// f(parameter, span of its values) for each parameter.
  template <class F> void for_each(F&& f) const {
    f(describe(0), std::span(router_, static_cast<std::size_t>(router_size)));
    for (std::size_t i = 0; i <= inputs; ++i)
      f(describe(i + 1), std::span(experts_[i], static_cast<std::size_t>(matrix_size)));
  }

  /// Memory of its own, not initialised.
  static parameter_set allocate(std::pmr::memory_resource& memory) {
    parameter_set result;
    auto const own = [&]<class T>(T*& pointer, std::int64_t size) {
      result.owned_.emplace_back(size * static_cast<std::int64_t>(sizeof(T)), memory);
      pointer = static_cast<T*>(result.owned_.back().data());
    };
    own(result.router_, router_size);
    for (ExpertType*& expert : result.experts_) own(expert, matrix_size);
    return result;
  }

  /// Memory of the caller: bind(parameter) gives a pointer to size() values, typed or void*.
  template <class Bind> static parameter_set bound(Bind&& bind) {
    parameter_set result;
    auto const take = [&]<class T>(T*& pointer, std::size_t index) {
      parameter const p = describe(index);
      auto* const given = bind(p);
      using Given = std::remove_pointer_t<decltype(given)>;
      require<config_error>(std::is_void_v<Given> || std::is_same_v<Given, T>, "parameter ", p.name, " holds ", p.type,
                            ", but was bound to memory of another type.");
      require<data_error>(given != nullptr, "parameter ", p.name, " was bound to null.");
      require<data_error>(is_aligned<T>(given), "bind_weights was given memory for parameter ", p.name,
                          " at an address that is no multiple of ", alignof(T), " bytes.");
      pointer = static_cast<T*>(static_cast<void*>(given));
    };
    take(result.router_, 0);
    for (std::size_t i = 0; i <= inputs; ++i) take(result.experts_[i], i + 1);
    return result;
  }

 private:
  RouterType* router_ = nullptr;
  std::array<ExpertType*, inputs + 1> experts_{};
  std::vector<buffer> owned_;
};

}  // namespace detail

template <class Spec, scalar T, weight_layout Layout = row_major>
class layer_weights : public detail::parameter_set<Spec, sum_t<T>, T> {
  using base = detail::parameter_set<Spec, sum_t<T>, T>;
  using spec = spec_of<Spec>;
  using mlp_type = typename spec::experts_type;
  static constexpr bool packs = Layout::packs_forward || Layout::packs_backward;

 public:
  static constexpr expert_sizes sizes{spec::experts, spec::hidden, spec::ffn};

  layer_weights(base set, std::pmr::memory_resource& memory) : base(std::move(set)), copies_(sizes, memory) {}

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

 private:
  expert_copies<mlp_type, T, Layout> copies_;
  bool changed_ = true;
};

template <class Spec, scalar T> class layer_gradients : public detail::parameter_set<Spec, sum_t<T>, sum_t<T>> {
  using base = detail::parameter_set<Spec, sum_t<T>, sum_t<T>>;

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
  weights.for_each([&](parameter const& p, auto values) {
    gradients.for_each([&](parameter const& q, auto sums) {
      if (q.name == p.name) f(p, values, sums);
    });
  });
}
}  // namespace detail

/// f(parameter, span of weights, span of gradients) for each parameter.
template <class Spec, scalar T, class Layout, class F>
void for_each_parameter(layer_weights<Spec, T, Layout>& weights, layer_gradients<Spec, T>& gradients, F&& f) {
  detail::for_each_pair(weights, gradients, f);
}
template <class Spec, scalar T, class Layout, class F>
void for_each_parameter(layer_weights<Spec, T, Layout> const& weights, layer_gradients<Spec, T>& gradients, F&& f) {
  detail::for_each_pair(weights, gradients, f);
}

}  // namespace moiety
