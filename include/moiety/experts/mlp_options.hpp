// SPDX-License-Identifier: Apache-2.0
// What may follow the activation of an expert MLP, in any order, one of each kind:
//
//   clamped<L>     gate ← min(gate, L) and up ← clamp(up, −L, L) before the activation; L is a std::ratio above 0
//   up_offset<C>   up + C in place of up, after the clamp; C is a std::ratio
//   biased         W x + b in place of W x in every product: b_gate, b_up [E × I], b_down [E × H], in the element type
//
//   separate       a tensor for gate and one for up, [E, I, H] each (the default)
//   concatenated   one tensor, gate above up: [E, 2I, H]; a bias [E, 2I] likewise
//   interleaved    one tensor, gate in even rows and up in odd ones: [E, 2I, H]
//   out_by_in      tensors are [E, out, in] (the default)
//   in_by_out      tensors are [E, in, out]: gate and up beside one another, or in even and odd columns; down is [E, I, H]
//   down_in_by_out down alone is [E, in, out], that is [E, I, H]
//
// How tensors lie is what a checkpoint has, so it is said in the spec: weights are used where they lie, whatever the
// deployment, and gradients lie as the weights do.
//
// A clamp is torch.clamp: at the limit itself the gradient passes, strictly beyond it is 0, and NaN stays NaN.
#pragma once

#include <moiety/core/component_set.hpp>
#include <moiety/core/config.hpp>

#include <concepts>
#include <ratio>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

template <class Limit> struct clamped { using limit = Limit; };
template <class Offset = std::ratio<1>> struct up_offset { using offset = Offset; };
struct biased {};

struct separate {};
struct concatenated {};
struct interleaved {};
struct out_by_in {};
struct in_by_out {};
struct down_in_by_out {};

namespace detail {

template <class O> inline constexpr bool is_clamp = false;
template <class L> inline constexpr bool is_clamp<clamped<L>> = true;
template <class O> inline constexpr bool is_up_offset = false;
template <class C> inline constexpr bool is_up_offset<up_offset<C>> = true;

template <class O> using clamp_kind = std::bool_constant<is_clamp<O>>;
template <class O> using offset_kind = std::bool_constant<is_up_offset<O>>;
template <class O> using bias_kind = std::is_same<O, biased>;

template <class O>
using order_kind = std::bool_constant<std::is_same_v<O, separate> || std::is_same_v<O, concatenated> ||
                                      std::is_same_v<O, interleaved>>;
template <class O>
using axes_kind = std::bool_constant<std::is_same_v<O, out_by_in> || std::is_same_v<O, in_by_out> ||
                                     std::is_same_v<O, down_in_by_out>>;

template <class O>
inline constexpr bool is_gate_option =
    is_clamp<O> || is_up_offset<O> || std::is_same_v<O, concatenated> || std::is_same_v<O, interleaved>;
template <class O>
inline constexpr bool is_mlp_option =
    is_gate_option<O> || bias_kind<O>::value || order_kind<O>::value || axes_kind<O>::value;

/// How the matrices of an MLP lie.
template <bool Joined, bool Paired, bool Transposed, bool DownTransposed> struct mlp_storage {
  static constexpr bool joined = Joined;                   // inputs in one tensor
  static constexpr bool paired = Paired;                   // unit by unit in it
  static constexpr bool transposed = Transposed;           // inputs [in, out]
  static constexpr bool down_transposed = DownTransposed;  // down [in, out]
};

/// The options of one MLP.
template <bool Gated, class... Options> class mlp_options {
  using clamp = typename find_if<clamp_kind, void, Options...>::type;
  using offset = typename find_if<offset_kind, up_offset<std::ratio<0>>, Options...>::type;

  template <class Option> static constexpr bool has = (std::is_same_v<Option, Options> || ...);

  template <class Ratio, std::floating_point S>
  static constexpr S value_of = static_cast<S>(static_cast<double>(Ratio::num) / static_cast<double>(Ratio::den));

 public:
  static constexpr bool clamps = !std::is_void_v<clamp>;
  static constexpr bool biases = has<biased>;

  using storage = mlp_storage<has<concatenated> || has<interleaved>, has<interleaved>, has<in_by_out>,
                              has<in_by_out> || has<down_in_by_out>>;

  static consteval bool check() {
    static_assert((is_mlp_option<Options> && ...),
                  "an expert MLP was given an option that is none of experts/mlp_options.hpp.");
    static_assert(Gated || !(is_gate_option<Options> || ...),
                  "mo::mlp has no gate: mo::clamped, mo::up_offset, mo::concatenated and mo::interleaved are for "
                  "mo::gated_mlp.");
    static_assert(count_if<clamp_kind, Options...> <= 1 && count_if<offset_kind, Options...> <= 1 &&
                      count_if<bias_kind, Options...> <= 1 && count_if<order_kind, Options...> <= 1 &&
                      count_if<axes_kind, Options...> <= 1,
                  "an expert MLP takes at most one option of a kind.");
    if constexpr (clamps) static_assert(clamp::limit::num > 0, "mo::clamped<L> needs a std::ratio above 0.");
    return true;
  }

  template <std::floating_point S> static constexpr S up_offset_value = value_of<typename offset::offset, S>;

  /// Gate and up as the activation sees them, and whether their gradients pass.
  template <std::floating_point S> MOIETY_HD static S gate(S v) {
    if constexpr (clamps)
      return v > limit<S>() ? limit<S>() : v;
    else
      return v;
  }
  template <std::floating_point S> MOIETY_HD static S up(S v) {
    if constexpr (clamps) v = v > limit<S>() ? limit<S>() : v < -limit<S>() ? -limit<S>() : v;
    if constexpr (offset::offset::num != 0) v += up_offset_value<S>;
    return v;
  }
  template <std::floating_point S> MOIETY_HD static bool gate_passes(S v) { return !clamps || !(v > limit<S>()); }
  template <std::floating_point S> MOIETY_HD static bool up_passes(S v) {
    return !clamps || !(v > limit<S>() || v < -limit<S>());
  }

 private:
  template <std::floating_point S> MOIETY_HD static constexpr S limit() {
    if constexpr (clamps)
      return value_of<typename clamp::limit, S>;
    else
      return S{0};
  }
};

}  // namespace detail

}  // namespace moiety
