// SPDX-License-Identifier: Apache-2.0
// Expert MLPs. For a row x [H] of one expert, with I = dims.ffn:
//
//   gated_mlp<Act>   a = Act(W_gate x) ⊙ (W_up x)     y = W_down a        three matrices: SwiGLU is gated_mlp<silu>
//   mlp<Act>         a = Act(W_up x)                  y = W_down a        two matrices
//
// Options follow the activation, see experts/mlp_options.hpp. Published models name two of these compositions, with g and u
// clamped to a limit L:
//
//   clamped_swiglu<L = 7>    a = g σ(1.702 g) ⊙ (u + 1)    gpt-oss; g = min(W_gate x, L), u = clamp(W_up x, −L, L)
//   limited_swiglu<L = 10>   a = g σ(g) ⊙ u                DeepSeek-V4's swiglu_limit
//
// W_gate, W_up [E × I × H] and W_down [E × H × I], rows are outputs, unless an option says how else they lie. Saved for
// backward: the pre-activations z only (2 I or I values a row); a is computed again from them. An expert MLP is a struct
// of the constant `inputs` (matrices before the activation), their names, and two functions on the z of one unit:
//   value(z)                  a                      z, dz: mo::array of `inputs` values
//   derivative(z, da, dz)     dz_i = da · ∂a/∂z_i
// and of `biased` and `storage` where it has biases, and tensors that do not lie [E × I × H] one by one.
#pragma once

#include <moiety/core/array.hpp>
#include <moiety/core/config.hpp>
#include <moiety/experts/activation.hpp>
#include <moiety/experts/mlp_options.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <ratio>
#include <string_view>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

template <class M>
concept has_inputs = requires {
  M::inputs;
};

/// Whether the products of an MLP have biases.
template <class M> inline constexpr bool has_biases = false;
template <class M>
requires requires { requires M::biased; }
inline constexpr bool has_biases<M> = true;

/// How the tensors of an MLP lie, and which products that makes: where gate and up lie unit by unit, their two products are
/// one of twice the columns, and z and dz lie unit by unit too.
template <class M> struct storage_of { using type = detail::mlp_storage<false, false, false, false>; };
template <class M>
requires requires { typename M::storage; }
struct storage_of<M> {
  using type = typename M::storage;
};

template <class M> struct input_products : storage_of<M>::type {
  using storage = typename storage_of<M>::type;
  static constexpr int count = storage::paired ? 1 : M::inputs;
  static constexpr int step = storage::paired ? M::inputs : 1;  // columns from one unit to the next

  /// Columns of one product.
  static constexpr std::int64_t width(std::int64_t ffn) { return storage::paired ? M::inputs * ffn : ffn; }
  /// Where the i-th pre-activation of a unit lies in a row of z.
  MOIETY_HD static constexpr std::int64_t place(std::int64_t i, std::int64_t unit, std::int64_t ffn) {
    return storage::paired ? unit * M::inputs + i : i * ffn + unit;
  }
};

template <class M>
concept expert_mlp = has_inputs<M> && requires(array<float, static_cast<std::size_t>(M::inputs)> z) {
  { M::value(z) } -> std::convertible_to<float>;
  M::derivative(z, 1.0f, z);
  { M::input_names.size() } -> std::convertible_to<std::size_t>;
};

namespace detail {
/// A bad activation is replaced, so that one mistake gives one message.
template <class Act> consteval bool check_activation() {
  static_assert(
      activation<Act>,
      "mo::gated_mlp and mo::mlp need an activation: static value(v) and derivative(v) for float and double.");
  return true;
}
template <class Act> using checked_activation = std::conditional_t<activation<Act>, Act, identity>;
}  // namespace detail

template <class Act, class... Options> struct gated_mlp {
  static_assert(detail::check_activation<Act>());
  using activation = detail::checked_activation<Act>;
  using options = detail::mlp_options<true, Options...>;
  static_assert(options::check());
  static constexpr std::string_view name = "gated_mlp";
  static constexpr int inputs = 2;
  static constexpr bool biased = options::biases;
  using storage = typename options::storage;
  static constexpr std::array<std::string_view, 2> input_names{"gate", "up"};

  template <std::floating_point S> MOIETY_HD static S value(array<S, 2> const& z) {
    return static_cast<S>(activation::value(options::gate(z[0]))) * options::up(z[1]);
  }
  template <std::floating_point S> MOIETY_HD static void derivative(array<S, 2> const& z, S da, array<S, 2>& dz) {
    S const g = options::gate(z[0]), gate = static_cast<S>(activation::value(g)),
            slope = static_cast<S>(activation::derivative(g));
    dz = {options::gate_passes(z[0]) ? da * options::up(z[1]) * slope : S{0},
          options::up_passes(z[1]) ? da * gate : S{0}};
  }
};

template <class Act, class... Options> struct mlp {
  static_assert(detail::check_activation<Act>());
  using activation = detail::checked_activation<Act>;
  using options = detail::mlp_options<false, Options...>;
  static_assert(options::check());
  static constexpr std::string_view name = "mlp";
  static constexpr int inputs = 1;
  static constexpr bool biased = options::biases;
  using storage = typename options::storage;
  static constexpr std::array<std::string_view, 1> input_names{"up"};

  template <std::floating_point S> MOIETY_HD static S value(array<S, 1> const& z) {
    return static_cast<S>(activation::value(z[0]));
  }
  template <std::floating_point S> MOIETY_HD static void derivative(array<S, 1> const& z, S da, array<S, 1>& dz) {
    dz = {da * static_cast<S>(activation::derivative(z[0]))};
  }
};

template <class Limit = std::ratio<7>, class... Options>
using clamped_swiglu = gated_mlp<gelu_quick, clamped<Limit>, up_offset<>, Options...>;
template <class Limit = std::ratio<10>, class... Options>
using limited_swiglu = gated_mlp<silu, clamped<Limit>, Options...>;

static_assert(expert_mlp<gated_mlp<silu>> && expert_mlp<mlp<relu>>);

}  // namespace moiety
