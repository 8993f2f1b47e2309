// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/rows.hpp>

#include <moiety/experts/activation.hpp>
#include <moiety/experts/mlp.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;
using int64 = std::int64_t;

namespace {

using gated = mo::gated_mlp<mo::silu, mo::biased>;
using interleaved = mo::gated_mlp<mo::silu, mo::interleaved>;
using turned = mo::mlp<mo::silu, mo::in_by_out>;

/// n and k of each sum that a weight gradient is, in order.
template <class Mlp> std::vector<std::vector<int64>> sums() {
  std::vector<std::vector<int64>> all;
  float const* const none = nullptr;
  mo::sum_over_rows<Mlp, float>({2, nullptr, 3, 5, 7}, {}, {}, none, none, mo::expert_matrices<Mlp, float>{}, {},
                                [&](auto const&, auto const&, auto const&, int64 n, int64 k) {
                                  all.push_back({n, k});
                                });
  return all;
}

}  // namespace

TEST_CASE("a biased MLP has one partial sum of dw more than there are column blocks") {
  static_assert(mo::weight_parts<mo::gated_mlp<mo::silu>, float>(300) == 2);
  static_assert(mo::weight_parts<gated, float>(300) == 3);
  CHECK(mo::column_blocks<float>(256) == 1);
}

TEST_CASE("inputs stand side by side in z, or unit by unit") {
  float const z[10] = {};
  auto const apart = mo::rows_before<gated>(z, {2, nullptr, 3, 5, 7});
  CHECK(apart.size() == 2);
  CHECK(apart[1].data == z + 5);
  CHECK(apart[1].stride == 10);
  auto const together = mo::rows_before<interleaved>(z, {2, nullptr, 3, 5, 7});
  CHECK(together.size() == 1);
  CHECK(together[0].stride == 10);
}

TEST_CASE("gradients have the extents of what they are gradients of, as it is stored") {
  using shapes = std::vector<std::vector<int64>>;
  CHECK(sums<gated>() == shapes{{5, 3}, {5, 1}, {5, 3}, {5, 1}, {3, 5}, {3, 1}});
  CHECK(sums<interleaved>() == shapes{{10, 3}, {3, 5}});
  CHECK(sums<turned>() == shapes{{3, 5}, {5, 3}});
  CHECK(sums<mo::gated_mlp<mo::silu, mo::down_in_by_out>>() == shapes{{5, 3}, {5, 3}, {5, 3}});
}
