// SPDX-License-Identifier: Apache-2.0
#include <moiety/core/version.hpp>

#include <doctest/doctest.h>

TEST_CASE("the version is the one that the inline namespace and the package carry") {
  CHECK(MOIETY_VERSION_MAJOR == 0);
  CHECK(MOIETY_VERSION_MINOR == 1);
  CHECK(MOIETY_VERSION_PATCH == 0);
}
