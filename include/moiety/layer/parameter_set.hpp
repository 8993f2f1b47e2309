// SPDX-License-Identifier: Apache-2.0
// A parameter of a layer, and the memory of all of them: of weights, or of gradients. See layer/parameters.hpp.
#pragma once

#include <moiety/backend/transport/rows.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/matrices.hpp>
#include <moiety/layer/expert_parameters.hpp>
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
  std::string name;                 // unique in its layer
  std::vector<std::int64_t> shape;  // of the whole logical tensor
  std::vector<range_of> part;       // what this rank holds of each axis
  std::int64_t fan_in = 0;          // inputs of one output; 0 for what starts at 0: biases, noise, states
  std::string_view type;            // "float", "bf16", …
  bool trained = true;              // has a gradient; a state has none
  bool of_experts = false;          // each rank of the expert axis has its own slice
  bool tied = false;                // other places of the model hold it under this name: layer/shared_parameters.hpp
  int layer = 0;                    // the number of its layer in the model, where there are several

  /// This rank's elements.
  std::size_t size() const {
    std::int64_t elements = 1;
    for (range_of const& axis : part) elements *= axis.count;
    return static_cast<std::size_t>(elements);
  }

  /// f(logical index of its first element, elements) for each piece of the part that is contiguous in the whole tensor, in the
  /// order in which they lie.
  template <class F> void for_each_piece(F const& f) const {
    std::size_t inner = shape.size() - 1;  // the last axis that is not here whole
    std::int64_t step = 1;                 // elements of the tensor per index of that axis
    for (; inner > 0 && part[inner].count == shape[inner]; --inner) step *= shape[inner];
    std::int64_t const length = part[inner].count * step;
    std::int64_t const pieces = length == 0 ? 0 : static_cast<std::int64_t>(size()) / length;
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
      std::int64_t first = part[inner].first * step, stride = step, rest = piece;
      for (std::size_t axis = inner; axis-- > 0; rest /= part[axis].count) {
        stride *= shape[axis + 1];
        first += (part[axis].first + rest % part[axis].count) * stride;
      }
      f(first, length);
    }
  }
};

/// Which experts a rank holds, and which units of their width.
struct expert_share {
  range_of experts, ffn;
};

namespace detail {

/// All of every axis.
inline std::vector<range_of> whole(std::vector<std::int64_t> const& shape) {
  std::vector<range_of> part;
  for (std::int64_t const extent : shape) part.push_back({0, extent});
  return part;
}

/// One that every rank holds whole.
inline parameter dense_parameter(std::string name, std::vector<std::int64_t> shape, std::int64_t fan_in,
                                 std::string_view type, bool trained = true) {
  std::vector<range_of> part = whole(shape);
  return {std::move(name), std::move(shape), std::move(part), fan_in, type, trained};
}

template <class Router> inline constexpr bool has_linear_bias = false;
template <class Router>
requires requires { requires Router::has_linear_bias; }
inline constexpr bool has_linear_bias<Router> = true;

template <class Router> inline constexpr bool has_learned_noise = false;
template <class Router>
requires requires { requires Router::has_learned_noise; }
inline constexpr bool has_learned_noise<Router> = true;

template <class Router> inline constexpr bool has_selection_bias = false;
template <class Router>
requires requires { requires Router::has_selection_bias; }
inline constexpr bool has_selection_bias<Router> = true;

/// Memory of every parameter that a rank holds of a layer: router values of type RouterType, expert values of type ExpertType.
template <class Spec, class RouterType, class ExpertType, bool WithStates> class parameter_set {
  using spec = spec_of<Spec>;
  using router_type = typename spec::router_type;
  using experts_type = expert_parameters<typename spec::experts_type, ExpertType>;
  using shared_type = expert_parameters<typename spec::shared_mlp, ExpertType>;

 public:
  static constexpr expert_sizes all_sizes{spec::mlp_experts, spec::expert_hidden, spec::ffn};
  static constexpr expert_share everything{{0, spec::mlp_experts}, {0, spec::ffn}};
  static constexpr expert_sizes shared_sizes{spec::has_shared ? 1 : 0, spec::hidden, spec::shared_ffn};

  matrix_view<RouterType> router() const { return {router_, spec::experts, spec::hidden}; }
  /// [E], or null where the router has none.
  RouterType* router_bias() const { return router_bias_; }
  matrix_view<RouterType> router_noise() const { return {router_noise_, spec::experts, spec::hidden}; }
  float* selection_bias() const { return expect_held(), selection_bias_; }

  expert_matrices<typename spec::experts_type, ExpertType> experts() const { return experts_.matrices(sizes()); }
  /// Of the experts of this rank.
  expert_sizes sizes() const { return {share_.experts.count, spec::expert_hidden, share_.ffn.count}; }
  expert_matrices<typename spec::shared_mlp, ExpertType> shared() const { return shared_.matrices(shared_sizes); }
  /// [L × H] and [H × L].
  matrix_view<ExpertType> latent_in() const { return {latent_in_, spec::latent, spec::hidden}; }
  matrix_view<ExpertType> latent_out() const { return {latent_out_, spec::hidden, spec::latent}; }
  /// [1 × H].
  matrix_view<RouterType> shared_gate() const { return {shared_gate_, 1, spec::hidden}; }

  /// Throws state_error for a set whose memory has moved to another.
  void expect_held() const {
    require<state_error>(!owned_.empty(), WithStates ? "weights" : "gradients", " of a layer were used after a move.");
  }
  /// f(parameter, span of its values) for each parameter.
  template <class F> void for_each(F&& f) const {
    visit(*this, [&](auto* values, parameter const& p) { f(p, std::span(values, p.size())); });
  }

  /// The same without states.
  template <class F> void for_each_trained(F&& f) const {
    visit_trained(*this, [&](auto* values, parameter const& p) { f(p, std::span(values, p.size())); });
  }

  /// Memory of its own, not initialised; of these experts.
  static parameter_set allocate(std::pmr::memory_resource& memory, expert_share const& share = everything) {
    parameter_set result;
    result.share_ = share;
    visit(result, [&]<class T>(T*& pointer, parameter const& p) {
      result.owned_.emplace_back(static_cast<std::int64_t>(p.size() * sizeof(T)), memory);
      pointer = static_cast<T*>(result.owned_.back().data());
    });
    return result;
  }

  /// Memory of the caller: bind(parameter) gives a pointer to size() values, typed or void*.
  template <class Bind> static parameter_set bound(Bind&& bind, expert_share const& share = everything) {
    parameter_set result;
    result.share_ = share, result.owned_.emplace_back();
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
      f(self.selection_bias_, dense_parameter("router.selection_bias", {spec::experts}, 0, name_of<float>, false));
  }

  /// Of a tensor of experts: the experts of this rank, and of the axis that is shorter here its units.
  std::vector<range_of> part_of(std::vector<std::int64_t> const& shape, std::vector<std::int64_t> const& here) const {
    std::vector<range_of> part{share_.experts};
    for (std::size_t axis = 1; axis < shape.size(); ++axis) {
      std::int64_t const before = shape[axis] == here[axis] ? 0 : share_.ffn.first * (here[axis] / share_.ffn.count);
      part.push_back({before, here[axis]});
    }
    return part;
  }

  /// What the pointers of visit_trained are, in its order.
  std::vector<parameter> trained() const {
    constexpr std::int64_t experts = spec::experts;
    std::string_view const router_name = name_of<RouterType>, expert_name = name_of<ExpertType>;
    std::vector<parameter> all;
    auto const dense = [&](std::string_view type, std::string name, std::vector<std::int64_t> shape,
                           std::int64_t fan_in) {
      all.push_back(dense_parameter(std::move(name), std::move(shape), fan_in, type));
    };
    dense(router_name, "router.weight", {experts, spec::hidden}, spec::hidden);
    if constexpr (has_linear_bias<router_type>) dense(router_name, "router.bias", {experts}, 0);
    if constexpr (has_learned_noise<router_type>) dense(router_name, "router.noise", {experts, spec::hidden}, 0);
    std::vector<expert_tensor> tensors = experts_type::tensors("experts", all_sizes);
    std::vector<expert_tensor> const here = experts_type::tensors({}, sizes());
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      auto& [name, shape, fan_in] = tensors[i];
      std::vector<range_of> part = part_of(shape, here[i].shape);
      all.push_back({std::move(name), std::move(shape), std::move(part), fan_in, expert_name, true, true});
    }
    if constexpr (spec::has_latent) {
      dense(expert_name, "latent.in", {spec::latent, spec::hidden}, spec::hidden);
      dense(expert_name, "latent.out", {spec::hidden, spec::latent}, spec::latent);
    }
    if constexpr (spec::has_shared)
      for (expert_tensor& of : shared_type::tensors("shared", shared_sizes)) {
        of.shape.erase(of.shape.begin());
        dense(expert_name, std::move(of.name), std::move(of.shape), of.fan_in);
      }
    if constexpr (spec::shared_gated) dense(router_name, "shared_gate.weight", {1, spec::hidden}, spec::hidden);
    return all;
  }

  template <class Self, class F> static void visit_trained(Self& self, F const& f) {
    if constexpr (std::is_const_v<Self>) self.expect_held();
    std::vector<parameter> const all = self.trained();
    auto next = all.begin();
    auto const visit_one = [&](auto& pointer) { f(pointer, *next++); };
    visit_one(self.router_);
    if constexpr (has_linear_bias<router_type>) visit_one(self.router_bias_);
    if constexpr (has_learned_noise<router_type>) visit_one(self.router_noise_);
    experts_type::visit(self.experts_, visit_one);
    if constexpr (spec::has_latent) visit_one(self.latent_in_), visit_one(self.latent_out_);
    if constexpr (spec::has_shared) shared_type::visit(self.shared_, visit_one);
    if constexpr (spec::shared_gated) visit_one(self.shared_gate_);
  }

  expert_share share_ = everything;
  RouterType* router_ = nullptr;
  RouterType* router_bias_ = nullptr;
  RouterType* router_noise_ = nullptr;
  float* selection_bias_ = nullptr;
  experts_type experts_;
  ExpertType* latent_in_ = nullptr;
  ExpertType* latent_out_ = nullptr;
  shared_type shared_;
  RouterType* shared_gate_ = nullptr;
  std::vector<buffer> owned_;  // one without memory where that is the caller's; none once moved from
};

}  // namespace detail

}  // namespace moiety
