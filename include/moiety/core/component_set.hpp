// SPDX-License-Identifier: Apache-2.0
// A value of each of several component types, made from any of them in any order; the others keep their defaults.
// Also the searches by which a composition finds the component that plays a role.
#pragma once

#include <moiety/core/config.hpp>

#include <concepts>
#include <cstddef>
#include <type_traits>
#include <utility>

namespace moiety::inline MOIETY_ABI {

namespace detail {

template <class T, class... Ts> inline constexpr int count_of = (0 + ... + (std::same_as<T, Ts> ? 1 : 0));

/// T is exactly one of Ts.
template <class T, class... Ts>
concept one_of = 1 == count_of<T, Ts...>;

/// The first of Ts for which Predicate<T>::value holds, else Fallback.
template <template <class> class Predicate, class Fallback, class... Ts> struct find_if { using type = Fallback; };
template <template <class> class Predicate, class Fallback, class T, class... Ts>
struct find_if<Predicate, Fallback, T, Ts...> {
  using type = typename std::conditional_t<Predicate<T>::value, std::type_identity<T>,
                                           find_if<Predicate, Fallback, Ts...>>::type;
};

/// How many of Ts Predicate<T>::value holds for.
template <template <class> class Predicate, class... Ts>
inline constexpr int count_if = (0 + ... + (Predicate<Ts>::value ? 1 : 0));

/// The place of T among Ts.
template <class T, class First, class... Rest> MOIETY_HD constexpr std::size_t place_of() {
  if constexpr (std::same_as<T, First>)
    return 0;
  else
    return 1 + place_of<T, Rest...>();
}

/// A component at its place in the list.
template <std::size_t, class Component> struct placed { Component value{}; };

template <class Places, class... Components> struct placed_components;
template <std::size_t... I, class... Components>
struct placed_components<std::index_sequence<I...>, Components...> : placed<I, Components>... {};

}  // namespace detail

template <class... Components> class component_set {
 public:
  constexpr component_set() noexcept = default;

  template <detail::one_of<Components...>... Some> constexpr component_set(Some... some) {
    ((get<Some>() = some), ...);
  }

  template <detail::one_of<Components...> Component> MOIETY_HD constexpr Component const& get() const {
    return static_cast<at<Component> const&>(components_).value;
  }
  template <detail::one_of<Components...> Component> MOIETY_HD constexpr Component& get() {
    return static_cast<at<Component>&>(components_).value;
  }

  /// Calls f(component) for each, in the order of the list.
  MOIETY_CALLS_GIVEN template <class F> MOIETY_HD constexpr void for_each(F const& f) const {
    (f(get<Components>()), ...);
  }

 private:
  template <class Component> using at = detail::placed<detail::place_of<Component, Components...>(), Component>;

  detail::placed_components<std::index_sequence_for<Components...>, Components...> components_{};
};

}  // namespace moiety
