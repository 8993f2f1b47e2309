// SPDX-License-Identifier: Apache-2.0
// What was composed, in words and numbers.
//
//   std::cout << mo::describe<Spec>();                          roles, sizes, parameters, FLOPs and bytes a token
//   std::cout << mo::describe(layer, mo::tokens{16384});        the same, with the memory of a call of that size
//
// Of several ranks the memory is that of this one: bytes_of_rank of layer/costs.hpp, with what that says of rows that arrive.
// Beside it a context has scratch: 4 MiB a thread of mo::host, 4 MiB on mo::cuda.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/experts/mlp.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/moe_layer.hpp>
#include <moiety/layer/spec.hpp>

#include <iomanip>
#include <limits>
#include <ostream>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

struct description {
  std::string text;
  friend std::ostream& operator<<(std::ostream& out, description const& d) { return out << d.text; }
};

namespace detail {

template <class Policy> constexpr std::string_view policy_name() {
  if constexpr (requires { std::string_view(Policy::name); })
    return Policy::name;
  else
    return "user-defined";
}

/// An expert MLP as a spec writes it: "gated_mlp<gelu_quick, clamped 7, up + 1, biased, interleaved, in_by_out>".
template <class Mlp> std::string mlp_words() {
  std::ostringstream out;
  out << policy_name<Mlp>();
  if constexpr (requires { typename Mlp::activation; }) out << '<' << policy_name<typename Mlp::activation>();
  if constexpr (requires { typename Mlp::options; }) {
    using options = typename Mlp::options;
    if (options::clamps) out << ", clamped " << options::template gate<double>(std::numeric_limits<double>::infinity());
    if (options::template up_offset_value<double> != 0) out << ", up + " << options::template up_offset_value<double>;
  }
  using storage = typename storage_of<Mlp>::type;
  if (has_biases<Mlp>) out << ", biased";
  if (storage::joined) out << (storage::paired ? ", interleaved" : ", concatenated");
  if (storage::down_transposed) out << (storage::transposed ? ", in_by_out" : ", down_in_by_out");
  if constexpr (requires { typename Mlp::activation; }) out << '>';
  return out.str();
}

/// The roles of a router, in the order in which a row meets them.
template <class Router> std::string router_words() {
  std::ostringstream out;
  if constexpr (Router::has_jitter) out << policy_name<std::decay_t<decltype(Router{}.jitter())>>() << ", ";
  if constexpr (Router::has_linear_bias) out << "linear_bias, ";
  if constexpr (Router::has_logit_noise) out << policy_name<std::decay_t<decltype(Router{}.noise())>>() << ", ";
  out << policy_name<typename Router::score_type>() << ", ";
  if constexpr (Router::has_selection_bias) out << policy_name<typename Router::bias_type>() << ", ";
  if constexpr (Router::has_groups)
    out << policy_name<typename Router::group_type>() << '<' << Router::group_type::count_of_groups << ", "
        << Router::group_type::kept << ">, ";
  out << policy_name<typename Router::selection_type>();
  if (Router::slots != every_expert) out << '<' << Router::slots << '>';
  out << ", weights " << policy_name<typename Router::weight_type>();
  if (Router{}.scale_factor() != 1) out << " x " << Router{}.scale_factor();
  if (Router::place == weight_place::activation) out << " on_activation";
  if (Router::place == weight_place::input) out << " on_input";
  return out.str();
}

template <class Capacity> std::string capacity_words() {
  std::ostringstream out;
  out << Capacity::ratio << " of the mean load, drops " << policy_name<typename Capacity::drop_type>() << " per "
      << (Capacity::by_sequence ? per::sequence::name : per::global_batch::name);
  if (Capacity::renormalises) out << ", renormalise_after_drop";
  if (Capacity::pads) out << ", padded";
  return out.str();
}

/// 12345678 as "12.35 M", with the unit at the end.
inline std::string scaled(double value, std::string_view unit) {
  constexpr std::string_view prefixes[] = {"", "k", "M", "G", "T", "P"};
  int prefix = 0;
  for (; value >= 1000 && prefix < 5; ++prefix) value /= 1000;
  std::ostringstream out;
  out << std::setprecision(4) << value << ' ' << prefixes[prefix] << unit;
  return out.str();
}

inline std::string scaled(std::int64_t value, std::string_view unit) {
  return scaled(static_cast<double>(value), unit);
}

}  // namespace detail

template <class Spec> description describe() {
  using spec = spec_of<Spec>;
  using experts = typename spec::experts_type;
  std::ostringstream out;
  out << "router   " << detail::router_words<typename spec::router_type>() << '\n';
  if constexpr (spec::capacity_type::drops)
    out << "capacity " << detail::capacity_words<typename spec::capacity_type>() << '\n';
  out << "experts  " << spec::mlp_experts << " x " << detail::mlp_words<experts>() << ", " << spec::inputs + 1
      << " matrices, hidden " << spec::hidden << ", ffn " << spec::ffn;
  if (spec::has_latent) out << ", latent " << spec::latent;
  if (spec::zero_experts > 0) out << ", and " << spec::zero_experts << " of no computation";
  out << '\n';
  if (spec::has_shared)
    out << "shared   " << spec::shared_type::count << " x " << detail::mlp_words<typename spec::shared_mlp>()
        << ", ffn of all " << spec::shared_ffn << (spec::shared_gated ? ", sigmoid_gated\n" : "\n");
  out << "losses  ";
  typename spec::losses_type{}.for_each(
      [&]<class Loss>(Loss const&) { out << ' ' << Loss::name << " over " << Loss::unit::name << ';'; });
  if (spec::losses_type::count == 0) out << " none";
  out << '\n'
      << "size     " << detail::scaled(parameters<Spec>, " parameters") << ", "
      << detail::scaled(active_parameters<Spec>, " active") << '\n'
      << "a token  " << detail::scaled(forward_flops<Spec>(tokens{1}), "FLOP") << " forward, "
      << detail::scaled(backward_flops<Spec>(tokens{1}), "FLOP") << " backward\n";
  return {out.str()};
}

template <class Spec, class Deployment> description describe(moe_layer<Spec, Deployment> const& layer, tokens of) {
  layer_bytes const bytes = bytes_of_rank<Spec, Deployment>(layer.shape(), of);
  std::ostringstream out;
  out << describe<Spec>() << "element  " << name_of<detail::element_t<Deployment>> << ", weights "
      << detail::weight_layout_t<Deployment>::name << ", products "
      << detail::policy_name<typename Deployment::expert_products>() << ", of the router "
      << detail::policy_name<typename Deployment::router_products>() << ", numerics "
      << (detail::sums_fastest<Deployment> ? "fastest" : "invariant") << '\n'
      << of.count << " tokens: " << detail::scaled(forward_flops<Spec>(of), "FLOP") << " forward, "
      << detail::scaled(backward_flops<Spec>(of), "FLOP") << " backward\n"
      << "memory   weights " << detail::scaled(bytes.weights, "B") << ", gradients "
      << detail::scaled(bytes.gradients, "B") << ", saved for backward " << detail::scaled(bytes.saved, "B")
      << ", workspace " << detail::scaled(bytes.workspace, "B") << '\n';
  return {out.str()};
}

}  // namespace moiety
