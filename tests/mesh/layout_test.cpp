// SPDX-License-Identifier: Apache-2.0
#include <moiety/mesh/layout.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>

namespace mo = moiety;

namespace {

using fault = mo::layout_fault;

constexpr int most = std::numeric_limits<int>::max();

template <mo::layout Layout> struct constant {};

std::string shown(mo::layout const& l) {
  std::ostringstream out;
  out << l;
  return std::move(out).str();
}

/// The rule of faults once more, in products that nothing overflows.
fault expected(mo::layout const& l) {
  __extension__ using wide = __int128;
  bool const zero = l.data == 0 && l.tensor == 0 && l.context == 0 && l.pipeline == 0 && l.expert == 0;
  if (zero && l.expert_tensor == 0) return fault::not_given;
  if (l.data < 1 || l.tensor < 1 || l.context < 1 || l.pipeline < 1 || l.expert < 1 || l.expert_tensor < 1)
    return fault::axis_below_one;
  wide const stage = wide{l.data} * l.tensor * l.context;
  if (stage * l.pipeline >= most) return fault::too_large;
  return stage % (wide{l.expert} * l.expert_tensor) == 0 ? fault::none : fault::experts_do_not_divide;
}

}  // namespace

TEST_CASE("the world is data x tensor x context x pipeline; expert axes are cut out of a stage") {
  constexpr mo::layout one{};
  CHECK(one.world() == 1);
  CHECK(one.stage() == 1);
  CHECK(one.expert_data() == 1);
  constexpr mo::layout l{.data = 2, .tensor = 3, .context = 5, .pipeline = 7, .expert = 5, .expert_tensor = 3};
  CHECK(l.world() == 210);
  CHECK(l.stage() == 30);
  CHECK(l.expert_group() == 15);
  CHECK(l.expert_data() == 2);
  int const sizes[] = {3, 5, 2, 7, 3, 5, 2};
  for (int a = 0; a < 7; ++a) CHECK(l.size(static_cast<mo::axis>(a)) == sizes[a]);
  CHECK(mo::axis_name(mo::axis::tensor) == "tensor");
  CHECK(mo::axis_name(mo::axis::pipeline) == "pipeline");
  CHECK(mo::axis_name(mo::axis::expert_data) == "expert_data");
}

TEST_CASE("a layout is a template argument, and its order is a part of it") {
  static_assert(mo::layout{.data = 4} == mo::layout{.data = 4});
  static_assert(mo::layout{.data = 4} != mo::layout{.data = 4, .expert = 4});
  constexpr mo::layout plain{.data = 4, .tensor = 2};
  constexpr mo::layout other{.data = 4, .tensor = 2, .order = {mo::axis::data, mo::axis::tensor, mo::axis::context}};
  CHECK(std::is_same_v<constant<plain>, constant<mo::layout{.data = 4, .tensor = 2}>>);
  CHECK_FALSE(std::is_same_v<constant<plain>, constant<other>>);
}

TEST_CASE("the axes of the grids, fastest first") {
  using mo::axis;
  constexpr mo::layout l{.data = 4, .tensor = 2, .order = {axis::data, axis::tensor, axis::context}};
  CHECK(mo::axes_of(mo::layout{}, mo::grid::dense) ==
        std::array{axis::tensor, axis::context, axis::data, axis::pipeline});
  CHECK(mo::axes_of(l, mo::grid::dense) == std::array{axis::data, axis::tensor, axis::context, axis::pipeline});
  CHECK(mo::axes_of(l, mo::grid::expert) ==
        std::array{axis::expert_tensor, axis::expert, axis::expert_data, axis::pipeline});
}

TEST_CASE("a constant layout is checked at compile time, and mo::dynamic waits for its layout") {
  static_assert(mo::check_layout<mo::layout{}>());
  static_assert(mo::check_layout<mo::layout{.data = 2, .tensor = 2, .pipeline = 2, .expert = 4}>());
  static_assert(mo::check_layout<mo::layout{.data = 6, .expert = 2, .expert_tensor = 3}>());
  static_assert(mo::check_layout<mo::dynamic>());
  static_assert(mo::dynamic.is_dynamic());
  static_assert(!mo::layout{}.is_dynamic());
  static_assert(!mo::layout{.data = 0}.is_dynamic());
  CHECK(mo::dynamic.world() == 0);
  CHECK(mo::dynamic.expert_data() == 0);
  constexpr bool usable = (mo::check_layout(mo::layout{.data = 4, .expert = 2}), true);
  CHECK(usable);
}

TEST_CASE("a layout that can never work is refused, with both grids") {
  CHECK_THROWS_WITH_AS(
      mo::check_layout(mo::layout{.data = 3, .tensor = 2, .pipeline = 2, .expert = 4}),
      "the layout with dense grid tensor 2 x context 1 x data 3 x pipeline 2, expert grid expert_tensor "
      "1 x expert 4 x expert_data 6/4 x pipeline 2: the expert axes of a layout need expert * "
      "expert_tensor to divide data * context * tensor.",
      mo::config_error);
  CHECK_THROWS_WITH_AS(
      mo::check_layout(mo::layout{.tensor = 0}),
      "the layout with dense grid tensor 0 x context 1 x data 1 x pipeline 1, expert grid expert_tensor "
      "1 x expert 1 x expert_data 0 x pipeline 1: every axis of a layout needs at least one rank.",
      mo::config_error);
  CHECK_THROWS_WITH_AS(
      mo::check_layout(mo::layout{.data = 2, .order = {mo::axis::data, mo::axis::data, mo::axis::tensor}}),
      "the layout with dense grid data 2 x data 2 x tensor 1 x pipeline 1, expert grid expert_tensor 1 x expert 1 x "
      "expert_data 2 x pipeline 1: the order of a layout must name tensor, context and data, each once.",
      mo::config_error);
  CHECK_THROWS_WITH_AS(
      mo::check_layout(mo::dynamic),
      "the layout with dense grid tensor 0 x context 0 x data 0 x pipeline 0, expert grid expert_tensor "
      "0 x expert 0 x expert_data 0/0 x pipeline 0: mo::dynamic stands for a layout that is given at "
      "run time, and none was given.",
      mo::config_error);
  CHECK_THROWS_AS(mo::check_layout(mo::layout{.data = 1 << 16, .tensor = 1 << 15}), mo::config_error);
}

TEST_CASE("an order names the three axes of a stage once each, whatever their sizes") {
  using mo::axis;
  for (axis const a : {axis::tensor, axis::context, axis::data, axis::pipeline, axis::expert})
    for (axis const b : {axis::tensor, axis::context, axis::data, axis::pipeline, axis::expert})
      for (axis const c : {axis::tensor, axis::context, axis::data, axis::pipeline, axis::expert}) {
        bool const inside = a <= axis::data && b <= axis::data && c <= axis::data;
        bool const good = inside && a != b && b != c && a != c;
        CHECK(mo::fault_of(mo::layout{.order = {a, b, c}}) == (good ? fault::none : fault::order_incomplete));
      }
}

TEST_CASE("random layouts have the fault that exact products give them, and products never overflow") {
  std::mt19937 random(7);
  int seen[8] = {};
  int const sizes[] = {1, 1, 1, 1, 2, 2, 3, 4, 6, 8, 12, 0, -1, 1 << 10, 46341, 1 << 16, most, -most - 1};
  auto const any = [&] { return sizes[random() % 18]; };
  for (int i = 0; i < 20000; ++i) {
    mo::layout l{any(), any(), any(), any(), any(), any()};
    if (i % 500 == 0) l = mo::dynamic;
    INFO(shown(l));
    CHECK(mo::fault_of(l) == expected(l));
    ++seen[static_cast<int>(mo::fault_of(l))];
    if (mo::fault_of(l) == fault::none)
      CHECK_NOTHROW(mo::check_layout(l));
    else
      CHECK_THROWS_AS(mo::check_layout(l), mo::config_error);
  }
  for (fault const f :
       {fault::none, fault::not_given, fault::axis_below_one, fault::too_large, fault::experts_do_not_divide})
    CHECK(seen[static_cast<int>(f)] > 20);
}

TEST_CASE("the largest world is 2^31 - 2 ranks") {
  CHECK(mo::fault_of(mo::layout{.data = most - 1}) == fault::none);
  CHECK(mo::layout{.data = most - 1}.world() == most - 1);
  CHECK(mo::fault_of(mo::layout{.data = most}) == fault::too_large);
  CHECK(mo::layout{.data = most, .tensor = most, .context = most, .pipeline = most}.world() == most);
  CHECK(mo::fault_of(mo::layout{.data = 4, .expert = most, .expert_tensor = most}) == fault::experts_do_not_divide);
}

TEST_CASE("a layout needs the ranks that there are") {
  constexpr mo::layout l{.data = 2, .tensor = 2, .pipeline = 2, .expert = 4};
  CHECK_NOTHROW(mo::check_world(l, 8));
  CHECK_THROWS_WITH_AS(
      mo::check_world(l, 6),
      "the layout with dense grid tensor 2 x context 1 x data 2 x pipeline 2, expert grid expert_tensor "
      "1 x expert 4 x expert_data 1 x pipeline 2 needs 8 ranks, and there are 6.",
      mo::config_error);
  CHECK_THROWS_AS(mo::check_world(l, 0), mo::config_error);
  CHECK_THROWS_AS(mo::check_world(l, (std::int64_t{1} << 32) + 8), mo::config_error);
  CHECK_THROWS_AS(mo::check_world(mo::layout{.data = 2, .expert = 4}, 2), mo::config_error);
}
