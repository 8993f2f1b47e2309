// SPDX-License-Identifier: Apache-2.0
// What was composed, in words and numbers.
//
//   std::cout << mo::describe<Spec>();                          roles, sizes, parameters, FLOPs and bytes a token
//   std::cout << mo::describe(layer, mo::tokens{16384});        the same, with the memory of a call of that size
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/layer/moe_layer.hpp>
#include <moiety/layer/spec.hpp>

#include <iomanip>
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
  using router = typename spec::router_type;
  using experts = typename spec::experts_type;
  std::ostringstream out;
  out << "router   " << detail::policy_name<typename router::score_type>() << ", "
      << detail::policy_name<typename router::selection_type>() << '<' << spec::slots << ">, weights "
      << detail::policy_name<typename router::weight_type>();
  if constexpr (router::has_logit_noise) out << ", " << std::decay_t<decltype(router{}.noise())>::name;
  if (router{}.scale_factor() != 1) out << " x " << router{}.scale_factor();
  out << '\n'
      << "experts  " << spec::experts << " x " << detail::policy_name<experts>() << '<'
      << detail::policy_name<typename experts::activation>() << ">, " << spec::inputs + 1 << " matrices, hidden "
      << spec::hidden << ", ffn " << spec::ffn << '\n'
      << "losses  ";
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

template <class Spec, class Deployment> description describe(moe_layer<Spec, Deployment> const&, tokens of) {
  std::ostringstream out;
  out << describe<Spec>() << "element  " << name_of<detail::element_t<Deployment>> << ", weights "
      << Deployment::weight_layout::name << '\n'
      << of.count << " tokens: " << detail::scaled(forward_flops<Spec>(of), "FLOP") << " forward, "
      << detail::scaled(backward_flops<Spec>(of), "FLOP") << " backward\n"
      << "memory   weights " << detail::scaled(weight_bytes<Spec, Deployment>, "B") << ", gradients "
      << detail::scaled(gradient_bytes<Spec, Deployment>, "B") << ", saved for backward "
      << detail::scaled(saved_bytes<Spec, Deployment>(of), "B") << ", workspace "
      << detail::scaled(workspace_bytes<Spec, Deployment>(of), "B") << '\n';
  return {out.str()};
}

}  // namespace moiety
