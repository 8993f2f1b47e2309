// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/action.hpp>

#include <doctest/doctest.h>

#include <sstream>

namespace mo = moiety;

TEST_CASE("an action prints as stage, letter, micro-batch") {
  std::ostringstream out;
  out << mo::action{0, 3, mo::computation::forward} << ' ' << mo::action{12, 0, mo::computation::backward} << ' '
      << mo::action{1, 7, mo::computation::input_gradient} << ' '
      << mo::action{2, 10, mo::computation::weight_gradient};
  CHECK(out.str() == "0F3 12B0 1I7 2W10");
}

TEST_CASE("a full backward and an input gradient hand a gradient on, the others do not") {
  static_assert(mo::sends_gradient(mo::computation::backward) && mo::sends_gradient(mo::computation::input_gradient));
  static_assert(!mo::sends_gradient(mo::computation::forward) && !mo::sends_gradient(mo::computation::weight_gradient));
  CHECK(mo::letter(mo::computation::weight_gradient) == 'W');
}
