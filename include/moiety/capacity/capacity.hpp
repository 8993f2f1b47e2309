// SPDX-License-Identifier: Apache-2.0
// Capacity: how many tokens an expert takes at most.
//
//   using capacity = mo::dropless;                                        the default: as many as come
//   using capacity = mo::capacity<std::ratio<5, 4>>;                      a quarter more than the mean load, the lowest
//                                                                         weights dropped
//   using capacity = mo::capacity<std::ratio<1>, mo::drop::position, mo::per::sequence, mo::renormalise_after_drop>;
//
//   C = max(at_least, ⌈T k ratio / E⌉)   over a unit of T tokens, padding included: a number that no routing changes
//
// A slot beyond C is dropped: it has no row, weight 0, and no gradient of its weight; its token loses that expert. Options
// come in any order:
//
//   drop::lowest_weight   keeps the largest weights (the default)          drop::position   keeps the first tokens
//   drop::priority        keeps tokens whose largest weight is largest     drop::random     keeps by a draw for (step, token, e)
//   per::global_batch     a unit is all tokens of a call, on all ranks (the default)
//   per::sequence         a unit is a sequence, with a C of its own
//   rounded_up, rounded_down   ⌈ ⌉ (the default) or ⌊ ⌋                     at_least<N>      a floor for C, 0 by default
//   renormalise_after_drop     the weights that a token keeps are divided by their sum; times the router's scale
//   padded                     says that the model's own code fills each expert up to C rows; rows of padding change no result
//                              and are not computed here (messages of one size between ranks: dispatcher/padded.hpp)
//
// Of equal slots the lower token is kept. What is kept is a function of the unit alone, so it does not depend on layouts.
// Losses see the experts that tokens asked for, dropped or not; the report counts drops for each expert.
#pragma once

#include <moiety/batch/token.hpp>
#include <moiety/core/component_set.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/random.hpp>

#include <concepts>
#include <cstdint>
#include <ratio>
#include <string_view>
#include <type_traits>

namespace moiety::inline MOIETY_ABI {

/// Which of the slots of an expert are kept first. A rule is a struct of the static function
/// key(weight of the slot, largest weight of the token, token, expert): the larger stays.
namespace drop {
struct lowest_weight {
  static constexpr std::string_view name = "lowest_weight";
  template <class S> MOIETY_HD static double key(S weight, S, token_view const&, std::int64_t) {
    return static_cast<double>(weight);
  }
};
struct position {
  static constexpr std::string_view name = "position";
  template <class S> MOIETY_HD static double key(S, S, token_view const&, std::int64_t) { return 0; }
};
struct priority {
  static constexpr std::string_view name = "priority";
  template <class S> MOIETY_HD static double key(S, S largest, token_view const&, std::int64_t) {
    return static_cast<double>(largest);
  }
};
struct random {
  static constexpr std::string_view name = "random";
  static constexpr std::uint64_t stream = stream_of("capacity.random");
  template <class S> MOIETY_HD static double key(S, S, token_view const& token, std::int64_t expert) {
    return random_word(seed{expert}, stream + static_cast<std::uint64_t>(token.moment()),
                       static_cast<std::uint64_t>(token.logical));
  }
};
}  // namespace drop

namespace per {
struct global_batch {
  static constexpr std::string_view name = "global_batch";
};
struct sequence {
  static constexpr std::string_view name = "sequence";
};
}  // namespace per

struct rounded_up {};
struct rounded_down {};
struct renormalise_after_drop {};
struct padded {};
template <std::int64_t N> struct at_least {};

namespace detail {

template <class T>
concept drop_rule = requires(token_view const token) {
  { T::key(1.0f, 1.0f, token, std::int64_t{}) } -> std::same_as<double>;
};
template <class T> using is_drop_rule = std::bool_constant<drop_rule<T>>;
template <class T>
using is_unit = std::bool_constant<std::same_as<T, per::global_batch> || std::same_as<T, per::sequence>>;
template <class T> using is_rounding = std::bool_constant<std::same_as<T, rounded_up> || std::same_as<T, rounded_down>>;
template <class T> struct is_at_least : std::false_type {};
template <std::int64_t N> struct is_at_least<at_least<N>> : std::true_type {};
template <class T> inline constexpr std::int64_t least_of = 0;
template <std::int64_t N> inline constexpr std::int64_t least_of<at_least<N>> = N;

template <class T>
inline constexpr bool is_capacity_option =
    drop_rule<T> || is_unit<T>::value || is_rounding<T>::value || is_at_least<T>::value ||
    std::same_as<T, renormalise_after_drop> || std::same_as<T, padded>;

template <class Ratio, class... Options> consteval bool check_capacity() {
  static_assert(Ratio::num > 0, "mo::capacity needs a ratio above 0.");
  static_assert((is_capacity_option<Options> && ...), "mo::capacity was given a type that is none of its options.");
  static_assert(count_if<is_drop_rule, Options...> <= 1 && count_if<is_unit, Options...> <= 1 &&
                    count_if<is_rounding, Options...> <= 1 && count_if<is_at_least, Options...> <= 1,
                "mo::capacity takes one option of a kind.");
  return true;
}

}  // namespace detail

struct dropless {
  static constexpr std::string_view name = "dropless";
  static constexpr bool drops = false;
};

template <class Ratio, class... Options> struct capacity {
  static_assert(detail::check_capacity<Ratio, Options...>());
  static constexpr std::string_view name = "capacity";
  static constexpr bool drops = true;
  static constexpr double ratio = static_cast<double>(Ratio::num) / static_cast<double>(Ratio::den);
  static constexpr bool renormalises = detail::count_of<renormalise_after_drop, Options...> > 0;
  static constexpr bool pads = detail::count_of<padded, Options...> > 0;
  static constexpr bool by_sequence = detail::count_of<per::sequence, Options...> > 0;
  using drop_type = typename detail::find_if<detail::is_drop_rule, drop::lowest_weight, Options...>::type;

  /// C of a unit of `tokens` tokens with `slots` slots each.
  MOIETY_HD static constexpr std::int64_t of(std::int64_t tokens, std::int64_t slots, std::int64_t experts) {
    constexpr bool down = detail::count_of < rounded_down, Options... >> 0;
    std::int64_t const parts = experts * Ratio::den, share = tokens * slots * Ratio::num;
    std::int64_t const rounded = (share + (down ? 0 : parts - 1)) / parts;
    std::int64_t const raised = rounded < least ? least : rounded;
    return raised < tokens ? raised : tokens;
  }

 private:
  static constexpr std::int64_t least =
      detail::least_of<typename detail::find_if<detail::is_at_least, at_least<0>, Options...>::type>;
};

template <class T> inline constexpr bool is_capacity = std::same_as<T, dropless>;
template <class Ratio, class... Options>
inline constexpr bool is_capacity<capacity<Ratio, Options...>> = sizeof(capacity<Ratio, Options...>) >
                                                                 0;  // makes the compiler read its options

}  // namespace moiety
