// SPDX-License-Identifier: Apache-2.0
#include <moiety/core/component_set.hpp>

#include <doctest/doctest.h>

#include <string>
#include <type_traits>

namespace mo = moiety;

namespace {

struct a {
  int value = 1;
};
struct b {
  int value = 2;
};
struct c {
  int value = 3;
};
using set = mo::component_set<a, b, c>;

template <class T> using is_b = std::is_same<T, b>;

}  // namespace

static_assert(!std::is_constructible_v<set, int>);
static_assert(!std::is_constructible_v<mo::component_set<a>, b>);
static_assert(mo::detail::count_of<a, a, b, a> == 2);
static_assert(std::is_same_v<mo::detail::find_if<is_b, c, a, b>::type, b>);
static_assert(std::is_same_v<mo::detail::find_if<is_b, c, a>::type, c>);

TEST_CASE("any components, in any order; the others keep their defaults") {
  set const none, some = {c{30}, a{10}};
  CHECK(none.get<b>().value == 2);
  CHECK(some.get<a>().value == 10);
  CHECK(some.get<b>().value == 2);
  CHECK(some.get<c>().value == 30);
  set copy = some;
  copy.get<b>().value = 20;
  std::string order;
  copy.for_each([&](auto const& component) { order += std::to_string(component.value) + ' '; });
  CHECK(order == "10 20 30 ");
}

TEST_CASE("components of a kind are counted") {
  CHECK(moiety::detail::count_if<std::is_integral> == 0);
  CHECK(moiety::detail::count_if<std::is_integral, int, double, long, void> == 2);
}
