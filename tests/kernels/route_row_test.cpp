// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/route_row.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(), no_number = std::numeric_limits<float>::quiet_NaN();

mo::token_state sanitise(std::vector<float> const& from, std::vector<float>& to) {
  to.assign(from.size(), -7.0f);
  auto copy = from;
  auto const size = static_cast<std::int64_t>(from.size());
  mo::span_row<float> const row(copy.data(), size), left(to.data(), size);
  mo::token_state const state = mo::kernels::detail::sanitise(row, left);
  CHECK(mo::kernels::detail::sanitise(row, row) == state);  // in place
  if (state != mo::token_state::routed) CHECK(copy == to);
  return state;
}

}  // namespace

TEST_CASE("NaN counts as minus infinity, infinity as the largest number; with nothing left a token is unroutable") {
  std::vector<float> left;
  CHECK(sanitise({1, -2, 3}, left) == mo::token_state::routed);
  CHECK(left == std::vector{-7.0f, -7.0f, -7.0f});
  CHECK(sanitise({1, no_number, infinity, -infinity}, left) == mo::token_state::sanitised);
  CHECK(left == std::vector{1.0f, -infinity, std::numeric_limits<float>::max(), -infinity});
  CHECK(sanitise({no_number, -infinity}, left) == mo::token_state::unroutable);
}

TEST_CASE("log_sum_exp neither overflows nor underflows") {
  for (float const shift : {0.0f, 1000.0f, -1000.0f}) {
    std::vector<float> v{shift, shift + 1, shift - 1};
    double const exact = shift + std::log(1 + std::exp(1.0) + std::exp(-1.0));
    mo::span_row<float> const row(v.data(), 3);
    CHECK(mo::kernels::detail::log_sum_exp(row) == doctest::Approx(exact).epsilon(1e-6));
  }
}

TEST_CASE("a slot is the first of its group if no earlier one has an expert of the same group") {
  std::vector<std::int32_t> const ids{5, 0, 4, 1, 7, 2};  // groups of two: 2, 0, 2, 0, 3, 1
  bool const first[6] = {true, true, false, false, true, true};
  for (std::int64_t j = 0; j < 6; ++j) CHECK(mo::kernels::detail::first_of_group(ids.data(), j, 2) == first[j]);
  for (std::int64_t j = 0; j < 6; ++j) {
    CHECK(mo::kernels::detail::first_of_group(ids.data(), j, 1));
    CHECK(mo::kernels::detail::first_of_group(ids.data(), j, 8) == (j == 0));
  }
}
