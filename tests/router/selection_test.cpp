// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/selection.hpp>

#include <doctest/doctest.h>

#include <limits>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

template <int K> std::vector<int> chosen(std::vector<float> scores) {
  std::vector<int> experts;
  mo::span_row<float> row(scores.data(), static_cast<std::int64_t>(scores.size()));
  mo::top_k<K>{}.forward(row, [&](int slot, int expert) {
    CHECK(slot == static_cast<int>(experts.size()));
    CHECK(scores[static_cast<std::size_t>(expert)] == scores[static_cast<std::size_t>(expert)]);  // not removed yet
    experts.push_back(expert);
  });
  return experts;
}

}  // namespace

static_assert(mo::selection<mo::top_k<3>> && !mo::selection<int>);

TEST_CASE("the largest come first, and of equal scores the lower index") {
  CHECK(chosen<2>({0.1f, 0.7f, 0.2f}) == std::vector{1, 2});
  CHECK(chosen<3>({0.25f, 0.25f, 0.25f, 0.25f}) == std::vector{0, 1, 2});
  CHECK(chosen<2>({0.1f, 0.4f, 0.1f, 0.4f}) == std::vector{1, 3});
  CHECK(chosen<1>({3}) == std::vector{0});
}

TEST_CASE("all of the experts, and experts that can only be last") {
  CHECK(chosen<4>({0.1f, 0.4f, 0.3f, 0.2f}) == std::vector{1, 2, 3, 0});
  constexpr float never = -std::numeric_limits<float>::infinity();
  CHECK(chosen<3>({never, 0.5f, never, never}) == std::vector{1, 0, 2});
  CHECK(chosen<3>({0, 0, 0}) == std::vector{0, 1, 2});
}
