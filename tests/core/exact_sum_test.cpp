// SPDX-License-Identifier: Apache-2.0
#include <moiety/core/exact_sum.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace mo = moiety;

namespace {

__extension__ typedef __int128 integer;

mo::exact_sum sum(std::vector<double> const& terms) {
  mo::exact_sum s;
  for (double const t : terms) s.add(t);
  return s;
}

}  // namespace

TEST_CASE("any order and any grouping gives the same bits") {
  std::mt19937_64 words(2);
  std::normal_distribution<double> normal;
  std::vector<double> terms;
  for (int i = 0; i < 5000; ++i) terms.push_back(std::ldexp(normal(words), static_cast<int>(words() % 80) - 40));
  mo::exact_sum const expected = sum(terms);
  integer units = 0;
  for (double const t : terms) units += static_cast<integer>(std::nearbyint(std::ldexp(t, 24))) << 40;  // to 2^-24 each
  CHECK(expected.value() == doctest::Approx(std::ldexp(static_cast<double>(units), -64)).epsilon(1e-6));
  for (int i = 0; i < 5; ++i) {
    std::shuffle(terms.begin(), terms.end(), words);
    CHECK(sum(terms) == expected);
    mo::exact_sum parts;
    for (auto part = terms.begin(); part != terms.end();) {
      auto const next = part + std::min<std::ptrdiff_t>(static_cast<std::ptrdiff_t>(words() % 900), terms.end() - part);
      parts += sum({part, next});
      part = next;
    }
    CHECK(parts == expected);
  }
}

TEST_CASE("sums of multiples of the quantum are exact, with carries and borrows") {
  CHECK(sum({0.1, -0.1}).value() == 0);
  CHECK(sum({1, -0x1p-64}).value() == 1 - 0x1p-64);
  CHECK(sum({0x1p-64, -1}) == sum({-1, 0x1p-64}));
  CHECK(sum({0.75, 0.75, 0.75}).value() == 2.25);
  CHECK(sum({-0.75, -0.75, -0.75}).value() == -2.25);
  CHECK(sum({0x1p61, 0x1p-60, -0x1p61}).value() == 0x1p-60);
  CHECK(sum({-0x1p-64}).value() == -0x1p-64);
  CHECK(sum({-3}).value() == -3);
  CHECK(sum({}).value() == 0);
}

TEST_CASE("a term is rounded to the nearest multiple of 2^-64, ties to even") {
  CHECK(sum({0x1p-65}).value() == 0);
  CHECK(sum({0x1.8p-64}).value() == 0x1p-63);
  CHECK(sum({0x1.4p-64}).value() == 0x1p-64);
  CHECK(sum({0x1.cp-64}).value() == 0x1p-63);
  CHECK(sum({-1e-30}).value() == 0);
  CHECK(sum({-1e-30, 0.5}).value() == 0.5);
}

TEST_CASE("what does not fit is counted, and the value is NaN") {
  double const infinity = std::numeric_limits<double>::infinity();
  for (double const t : {infinity, -infinity, std::numeric_limits<double>::quiet_NaN(), 0x1p62, -0x1p62, 1e60}) {
    mo::exact_sum s = sum({1, t});
    CHECK(s.non_finite() == 1);
    CHECK(std::isnan(s.value()));
    s += sum({t});
    CHECK(s.non_finite() == 2);
  }
  CHECK(sum({0x1.fffp61}).value() == 0x1.fffp61);
}

TEST_CASE("adding word by word, to a sum that others add to, has the bits of +=") {
  std::mt19937_64 words(3);
  std::normal_distribution<double> normal;
  auto const add = [](std::uint64_t& word, std::uint64_t value) {
    std::uint64_t const before = word;
    word += value;
    return before;
  };
  mo::exact_sum at_once, by_words;
  CHECK(mo::exact_sum(-1, std::uint64_t{1} << 63).value() == -0.5);
  for (int i = 0; i < 2000; ++i) {
    mo::exact_sum part;
    for (int j = 0; j < 3; ++j) part.add(std::ldexp(normal(words), static_cast<int>(words() % 80) - 40));
    if (i % 500 == 7) part.add(std::numeric_limits<double>::infinity());
    at_once += part;
    part.add_to(by_words, add);
    CHECK(by_words == at_once);
    CHECK(by_words.whole() == at_once.whole());
    CHECK(by_words.fraction() == at_once.fraction());
  }
}
