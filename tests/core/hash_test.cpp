// SPDX-License-Identifier: Apache-2.0
#include <moiety/core/hash.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <string_view>

namespace mo = moiety;

// Values of the authors' own test suite.
static_assert(mo::fnv_1a().value() == 0xcbf29ce484222325u);
static_assert(mo::fnv_1a("a").value() == 0xaf63dc4c8601ec8cu);
static_assert(mo::fnv_1a("foobar").value() == 0x85944171f73967e8u);

TEST_CASE("parts add up to the whole, and a number is its bytes") {
  mo::fnv_1a parts("foo");
  parts.add("bar");
  CHECK(parts.value() == mo::fnv_1a("foobar").value());

  mo::fnv_1a number, bytes;
  number.add(std::uint64_t{0x0807060504030261u});
  bytes.add(std::string_view("a\2\3\4\5\6\7\10", 8));
  CHECK(number.value() == bytes.value());
  CHECK(number.value() != mo::fnv_1a("a").value());
}
