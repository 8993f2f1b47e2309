// SPDX-License-Identifier: Apache-2.0
// The trained tensors of a router of E experts, of H inputs:
//
//   router.weight   [E × H]
//   router.bias     [E]       where the router's logits have a bias; starts at 0
//   router.noise    [E × H]   where their noise is learned; starts at 0
#pragma once

#include <moiety/core/config.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace moiety::inline MOIETY_ABI::detail {

template <class Router> inline constexpr bool has_linear_bias = false;
template <class Router>
requires requires { requires Router::has_linear_bias; }
inline constexpr bool has_linear_bias<Router> = true;

template <class Router> inline constexpr bool has_learned_noise = false;
template <class Router>
requires requires { requires Router::has_learned_noise; }
inline constexpr bool has_learned_noise<Router> = true;

template <class Router, class T> class router_parameters {
 public:
  /// Values of its matrices, and of all its tensors.
  static constexpr std::int64_t matrix_values(std::int64_t experts, std::int64_t hidden) {
    return experts * hidden * (has_learned_noise<Router> ? 2 : 1);
  }
  static constexpr std::int64_t values(std::int64_t experts, std::int64_t hidden) {
    return matrix_values(experts, hidden) + (has_linear_bias<Router> ? experts : 0);
  }

  /// f(pointer, name, shape, fan in) for each tensor; what starts at 0 has no fan in.
  template <class Self, class F> static void visit(Self& self, std::int64_t experts, std::int64_t hidden, F const& f) {
    using shape = std::vector<std::int64_t>;
    f(self.weight_, std::string("router.weight"), shape{experts, hidden}, hidden);
    if constexpr (has_linear_bias<Router>) f(self.bias_, std::string("router.bias"), shape{experts}, std::int64_t{0});
    if constexpr (has_learned_noise<Router>)
      f(self.noise_, std::string("router.noise"), shape{experts, hidden}, std::int64_t{0});
  }

  T* weight() const { return weight_; }
  /// Null where the router has none.
  T* bias() const { return bias_; }
  T* noise() const { return noise_; }

 private:
  T* weight_ = nullptr;
  T* bias_ = nullptr;
  T* noise_ = nullptr;
};

}  // namespace moiety::inline MOIETY_ABI::detail
