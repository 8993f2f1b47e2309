// SPDX-License-Identifier: Apache-2.0
#include <moiety/batch/batch.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

TEST_CASE("a batch without members is one unmasked sequence") {
  mo::batch const plain;
  CHECK_NOTHROW(plain.check(0));
  CHECK_NOTHROW(plain.check(7));
  CHECK(plain.units() == 1);
  CHECK_FALSE(plain.masked(3));
}

TEST_CASE("masks count, sequences are units, a weight is taken as given") {
  std::vector<std::uint8_t> const mask{1, 0, 2, 0};
  std::vector<std::int64_t> const sequences{0, 0, 3, 4};
  mo::batch const b{.sequences = sequences, .mask = mask};
  CHECK_NOTHROW(b.check(4));
  CHECK(b.units() == 3);
  CHECK(b.masked(1));
  CHECK_FALSE(b.masked(2));
}

TEST_CASE("members that do not fit are data errors that say so") {
  std::vector<std::uint8_t> const mask(3, 1);
  std::vector<std::int32_t> const ids(5, 1);
  CHECK_THROWS_WITH_AS(mo::batch{.mask = mask}.check(4), "mo::batch{.mask} has 3 entries for a call of 4 tokens.",
                       mo::data_error);
  CHECK_THROWS_WITH_AS(mo::batch{.ids = ids}.check(4), doctest::Contains("mo::batch{.ids} has 5 entries"),
                       mo::data_error);
  for (std::vector<std::int64_t> const& wrong :
       {std::vector<std::int64_t>{1, 4}, {0, 3}, {0, 3, 2, 4}, {0}, {0, -1, 4}, {0, 5}})
    CHECK_THROWS_WITH_AS(mo::batch{.sequences = wrong}.check(4), doctest::Contains("rise from 0 to the 4 tokens"),
                         mo::data_error);
  for (double const weight : {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    CHECK_THROWS_AS(mo::batch{.weight = weight}.check(4), mo::data_error);
  for (double const weight : {0x1p62, 1e300, 0x1p-65, 5e-324})
    CHECK_THROWS_WITH_AS(mo::batch{.weight = weight}.check(4), doctest::Contains("or at least 2^-64 and below 2^62"),
                         mo::data_error);
  for (double const weight : {0.0, -0.0, 0x1p-64, 0.5, 0x1p61}) CHECK_NOTHROW(mo::batch{.weight = weight}.check(4));
}
