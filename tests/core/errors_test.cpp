// SPDX-License-Identifier: Apache-2.0
#include <moiety/core/errors.hpp>

#include "digit_groups.hpp"

#include <doctest/doctest.h>

#include <new>
#include <stdexcept>
#include <string>

namespace mo = moiety;

TEST_CASE("errors are the standard kinds, with a sentence") {
  CHECK_THROWS_AS(throw mo::config_error("x"), std::invalid_argument);
  CHECK_THROWS_AS(throw mo::data_error("x"), std::domain_error);
  CHECK_THROWS_AS(throw mo::state_error("x"), std::logic_error);
  CHECK_THROWS_AS(throw mo::resource_error("x"), std::bad_alloc);
  CHECK(std::string(mo::resource_error("too much").what()) == "too much");
}

TEST_CASE("a sentence has plain numbers in every locale") {
  digit_groups const locale;
  CHECK(mo::detail::sentence(1234567, " tokens of ", 2.5f) == "1234567 tokens of 2.5");
  CHECK(mo::detail::shape(4096, 16384) == "[4096 x 16384]");
}

TEST_CASE("require throws the joined parts, only where the condition fails") {
  CHECK_NOTHROW(mo::detail::require<mo::data_error>(true, "never"));
  CHECK_THROWS_WITH_AS(mo::detail::require<mo::data_error>(false, "got ", 3, " of ", mo::detail::shape(2, 4), '.'),
                       "got 3 of [2 x 4].", mo::data_error);
}
