// SPDX-License-Identifier: Apache-2.0
// A value of each of several component types, made from any of them in any order; the others keep their defaults.
// Also the searches by which a composition finds the component that plays a role.
#pragma once

#include <moiety/core/config.hpp>

#include <concepts>
#include <cstddef>
#include <tuple>
#include <type_traits>

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

}  // namespace detail

template <class... Components> class component_set {
 public:
  constexpr component_set() noexcept = default;

  template <detail::one_of<Components...>... Some> constexpr component_set(Some... some) {
    ((get<Some>() = some), ...);
  }

  template <class Component> MOIETY_HD constexpr Component const& get() const {
    return std::get<Component>(components_);
  }
  template <class Component> MOIETY_HD constexpr Component& get() { return std::get<Component>(components_); }

  /// Calls f(component) for each, in the order of the list.
  template <class F> constexpr void for_each(F const& f) const {
    std::apply([&](Components const&... c) { (f(c), ...); }, components_);
  }

 private:
  std::tuple<Components...> components_{};
};

}  // namespace moiety
